"""Asking a remote endpoint over HTTP: one connection pool a model, and one clear error for each way it can go wrong.

What comes back is hostile until it is read: an endpoint may be misconfigured, taken over, or a captive portal. So
redirects are not followed (they could lead the key, or us, anywhere), cookies are not kept (they would tie one
tenant's requests to another's), an answer must have the content type that was asked for and must not be compressed (a
kilobyte can unpack to a gigabyte), and no line or body is read beyond a limit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

import msgspec

from wootz.core import UpstreamError, WootzError
from wootz.core.journey import UNDER_WAY
from wootz.providers.connection import Connection, Failed, Response
from wootz.providers.endpoint import Endpoint
from wootz.providers.live_key import LiveKey
from wootz.providers.reaching import Way
from wootz.providers.sse import EventReader
from wootz.providers.upstream_errors import error_from_response

MAX_BODY_BYTES = 64 * 2**20
"""Of a whole answer: embeddings of a large batch are the longest."""

IDLE_SECONDS = {"http": 4.0, "https": 15.0}
"""How long a connection is kept for the next request. A server that hangs up just as it is asked fails a request that
can't be repeated safely, so we have to be first: uvicorn, and so most servers of one's own, wait for 5 seconds, what
stands behind a balancer for a minute."""
LAST_WORD_SECONDS = 0.1
"""An endpoint that does not end its answer so long after its last word is left, and the next request gets a new
connection."""

EVENTS, JSON = "text/event-stream", "application/json"

Item = TypeVar("Item")


class Http:
    """The way to one endpoint. Its key goes into the header ``key_header``, after ``scheme``."""

    def __init__(self, endpoint: Endpoint, key_header: str = "authorization", scheme: str = "Bearer ") -> None:
        self.endpoint = endpoint
        self._way = Way(endpoint.base_url)
        self.host = self._way.place.host
        self._headers = {"accept-encoding": "identity", "user-agent": "wootz"}
        self._headers |= {name: one for name, one in endpoint.headers.items() if isinstance(one, str)}
        self._live = {name: one for name, one in endpoint.headers.items() if isinstance(one, LiveKey)}
        self._key_header, self._scheme = key_header, scheme
        self._resting = deque[Connection]()
        self._is_closed = False

    async def close(self) -> None:
        self._is_closed = True
        while self._resting:
            self._resting.pop().close()
        for secret in self.endpoint.secrets:
            await secret.close()

    def batches(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None, *, last: str | None = None
    ) -> Batches:
        """The data of the answer's server-sent events, as a context manager. ``last`` is what the last one says, where
        there is such a word."""
        return Batches(self, self._ask("POST", path, body, EVENTS, headers), last)

    async def events(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[str, None]:
        """The same one by one."""
        async with self.batches(path, body, headers) as batches:
            while batch := await batches.next():
                for data in batch:
                    yield data

    async def json(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "POST",
    ) -> bytes:
        """The whole answer, which says that it is JSON."""
        async with self.response(method, path, body, accept=JSON, headers=headers) as response:
            whole = await response.body(MAX_BODY_BYTES + 1)
        if len(whole) > MAX_BODY_BYTES:
            raise self.failed(f"it answered more than {MAX_BODY_BYTES:,} bytes", "upstream_too_large")
        return whole

    def response(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        accept: str,
        headers: Mapping[str, str] | None = None,
    ) -> Reading:
        """The open answer as a context manager, its status and its kind good. Leaving the block early ends the remote
        work. ``accept`` is as the header: several kinds, and ``audio/*``, are one as good as the other."""
        return Reading(self, self._ask(method, path, body, accept, headers))

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        accept: str,
        headers: Mapping[str, str] | None,
    ) -> tuple[Connection, Response]:
        said = await self._confidential()
        if headers:
            said |= headers
        said["accept"] = accept
        try:
            content = b"" if body is None else msgspec.json.encode(body)
            if body is not None:
                said["content-type"] = JSON
            if method != "GET":
                said["content-length"] = str(len(content))
            request = _head(self._way.beginning(method, path), said) + content
        except ValueError:
            raise self.failed(
                "it can't be asked in HTTP (a key of more than one line?)", "upstream_malformed"
            ) from None
        timeouts, connection = self.endpoint.timeouts, None
        try:
            rested = connection = self._rested()
            if connection is None:
                connection = await self._way.connect(timeouts.connect)
            try:
                response = await connection.ask(request, timeouts.silence)
            except Failed as failure:
                if rested is None or method != "GET" or failure.code != "upstream_cut_off":
                    raise
                connection.abort()  # The endpoint closed it as we asked. What changes nothing is asked anew.
                connection = await self._way.connect(timeouts.connect)
                response = await connection.ask(request, timeouts.silence)
            await self._check(response, accept)
        except BaseException as error:
            if connection is not None:
                self.leave(connection)
            if isinstance(error, Failed):
                raise self.failed(error.how, error.code) from None
            raise
        return connection, response

    def _rested(self) -> Connection | None:
        """The connection that was used last."""
        while self._resting and not self._resting[0].is_open:
            self._resting.popleft()
        while self._resting:
            if (connection := self._resting.pop()).is_open:
                connection.wake()
                return connection
        return None

    def leave(self, connection: Connection, *, is_read: bool = False) -> None:
        """Only a connection whose answer has come to its end serves again."""
        if not self._is_closed and connection.may_serve_again():
            connection.rest(IDLE_SECONDS[self._way.place.scheme])
            self._resting.append(connection)
        elif not self._is_closed and is_read and connection.may_yet_end():
            connection.finish(LAST_WORD_SECONDS, partial(self.leave, connection))
        else:
            connection.abort()

    async def _confidential(self) -> dict[str, str]:
        """The headers of every request, with the key of this moment; the record is told which version that is."""
        said = self._headers.copy()
        for name, one in self._live.items():
            said[name] = (await one.use()).value
        if isinstance(self.endpoint.api_key, LiveKey):
            secret = await self.endpoint.api_key.use()
            said[self._key_header] = self._scheme + secret.value
            if asked := UNDER_WAY.get():
                asked.secret_version = secret.version
        return said

    async def _check(self, response: Response, accept: str) -> None:
        if response.status // 100 == 3:
            raise self.failed("it redirects elsewhere, which is not followed", "upstream_redirect")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise self.failed("its answer is compressed, which was not asked for", "upstream_compressed")
        if response.status // 100 != 2:
            raise await self.refusal(response)
        if response.content_type != accept and not any(
            fnmatchcase(response.content_type, kind) for kind in accept.split(", ")
        ):
            said = response.headers.get("content-type", "nothing")[:60]
            raise self.failed(f"it answered {said} instead of {accept}", "upstream_content_type")

    async def refusal(self, response: Response) -> WootzError:
        """For a status that is not good; a protocol with words of its own has this of its own."""
        return await error_from_response(response, self.endpoint)

    def failed(self, how: str, code: str) -> UpstreamError:
        return UpstreamError(f'model "{self.endpoint.name}": the endpoint failed: {how}', code=code)

    def in_time(self, answer: AsyncGenerator[Item, None]) -> AsyncGenerator[Item, None]:
        """The same answer; its first item and its end have to come within the endpoint's time-outs."""
        timeouts = self.endpoint.timeouts
        if timeouts.first_token is None and timeouts.total is None:
            return answer
        return self._watched(answer, timeouts.first_token, timeouts.total)

    async def _watched(
        self, answer: AsyncGenerator[Item, None], first_token: float | None, total: float | None
    ) -> AsyncGenerator[Item, None]:
        now: Callable[[], float] = asyncio.get_running_loop().time
        begun = now()
        limits = [limit for limit in (first_token, total) if limit is not None]
        what = "its first token took too long" if first_token is not None else "its answer took too long"
        async with aclosing(answer):
            while True:
                try:
                    async with asyncio.timeout_at(begun + min(limits) if limits else None):
                        item = await anext(answer)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    if total is not None and now() - begun >= total:
                        what = "its answer took too long"
                    raise self.failed(what, "upstream_timeout") from None
                yield item
                limits = [total] if total is not None else []


class _Open:
    """An answer while it is read."""

    def __init__(self, http: Http, asking: Coroutine[Any, Any, tuple[Connection, Response]]) -> None:
        self._http, self._asking = http, asking

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._http.leave(self._connection, is_read=self._response.is_read)
        if isinstance(error, Failed):
            raise self._http.failed(error.how, error.code) from None

    async def _open(self) -> Response:
        self._connection, self._response = await self._asking
        return self._response


class Reading(_Open):
    """What `Http.response` returns."""

    async def __aenter__(self) -> Response:
        return await self._open()


class Batches(_Open):
    """What `Http.batches` returns: an answer's events, together as they arrived together. No generator, for what each
    of those costs the loop."""

    def __init__(self, http: Http, asking: Coroutine[Any, Any, tuple[Connection, Response]], last: str | None) -> None:
        super().__init__(http, asking)
        self._last, self._reader = last, EventReader()

    async def __aenter__(self) -> Batches:
        await self._open()
        return self

    async def next(self) -> list[str]:
        """None of them at the end. Raises `UpstreamError`."""
        response, reader = self._response, self._reader
        try:
            while piece := await response.piece():
                if batch := reader.feed(piece):
                    response.is_read = batch[-1] == self._last
                    return batch
            return reader.end()
        except Failed as failure:
            raise self._http.failed(failure.how, failure.code) from None
        except ValueError:
            raise self._http.failed("what it answered is not JSON events", "upstream_malformed") from None


def _head(beginning: str, headers: Mapping[str, str]) -> bytes:
    said = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if said.count("\r") + said.count("\n") + said.count("\0") != 2 * len(headers):
        raise ValueError("a header of more than one line")
    return f"{beginning}{said}\r\n".encode("latin-1")
