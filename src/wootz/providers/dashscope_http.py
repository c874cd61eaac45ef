"""One model's connections to DashScope. Whatever goes wrong on the way is a `WootzError`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from pydantic_core import from_json

from wootz.core import UpstreamError, WootzError
from wootz.providers.dashscope_errors import error_from_response, error_of
from wootz.providers.endpoint import Endpoint

SSE = {"x-dashscope-sse": "enable", "accept": "text/event-stream"}
ASYNC = {"x-dashscope-async": "enable"}


class DashScopeHTTP:
    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        api_key, timeouts = endpoint.api_key, endpoint.timeouts
        self._http = httpx.AsyncClient(
            base_url=endpoint.base_url + "/",
            headers={**endpoint.headers} | ({"authorization": f"Bearer {api_key}"} if api_key else {}),
            timeout=httpx.Timeout(timeouts.silence, connect=timeouts.connect),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        )

    @property
    def host(self) -> str:
        return self._http.base_url.host

    async def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """The answer's JSON object, which may hold a failure of its own (`failure`)."""
        async with self.open(method, path, body, headers) as response:
            try:
                answer = from_json(await response.aread(), allow_inf_nan=False)
            except ValueError:
                answer = None
            if not isinstance(answer, dict):
                raise self.malformed()
            if answer.get("code"):  # Some services answer 200 and the failure in the body.
                raise self.failure(answer)
            return answer

    @asynccontextmanager
    async def open(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> AsyncGenerator[httpx.Response, None]:
        """The open response, its status good."""
        name = self.endpoint.name
        try:
            async with self._http.stream(method, path, json=body, headers=headers) as response:
                if not response.is_success:
                    raise await error_from_response(
                        response, model=name, region=self.endpoint.region, secret=self.endpoint.api_key
                    )
                yield response
        except httpx.TimeoutException as error:
            what = "did not accept a connection" if isinstance(error, httpx.ConnectTimeout) else "fell silent"
            raise UpstreamError(f'model "{name}": DashScope {what}', code="upstream_timeout") from None
        except httpx.ConnectError:
            raise UpstreamError(f'model "{name}": DashScope cannot be reached', code="upstream_unreachable") from None
        except (httpx.HTTPError, httpx.InvalidURL):
            raise UpstreamError(f'model "{name}": DashScope cut its answer short', code="upstream_cut_off") from None

    def failure(self, body: dict[str, Any]) -> WootzError:
        """For ``{"code", "message"}`` in an answer whose status was good: an event, or a task that failed."""
        endpoint = self.endpoint
        return error_of(body, model=endpoint.name, region=endpoint.region, secret=endpoint.api_key)

    def malformed(self) -> UpstreamError:
        return UpstreamError(
            f'model "{self.endpoint.name}": what DashScope answered is not its protocol', code="upstream_malformed"
        )

    async def close(self) -> None:
        await self._http.aclose()
