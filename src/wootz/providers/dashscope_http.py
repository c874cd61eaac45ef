"""The way to DashScope: `Http` with DashScope's errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from wootz.core import WootzError
from wootz.providers.connection import Response
from wootz.providers.dashscope_errors import error_from_body, error_of
from wootz.providers.http import Http
from wootz.providers.upstream_errors import MAX_ERROR_BYTES

SSE = {"x-dashscope-sse": "enable"}
ASYNC = {"x-dashscope-async": "enable"}


class DashScopeHttp(Http):
    async def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "POST",
    ) -> dict[str, Any]:
        """The answer's JSON object."""
        try:
            answer = from_json(await self.json(path, body, headers, method=method), allow_inf_nan=False)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self.malformed()
        if answer.get("code") and not answer.get("output"):  # Some services answer 200 and a failure.
            raise self.failure(answer)
        return answer

    def failure(self, said: dict[str, Any]) -> WootzError:
        """For ``{"code", "message"}`` in an answer whose status was good: an event, or a task that failed."""
        return error_of(said, self.endpoint)

    def malformed(self) -> WootzError:
        return self.failed("what it answered is not DashScope's protocol", "upstream_malformed")

    async def refusal(self, response: Response) -> WootzError:
        body = await response.body(MAX_ERROR_BYTES)
        return error_from_body(response.status, response.headers.get("retry-after"), body, self.endpoint)
