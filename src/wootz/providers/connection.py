"""One HTTP/1.1 connection to an endpoint, asked one thing at a time.

httptools (Node's parser, which uvicorn reads requests with too) finds out what the bytes say; here is what a client
makes of them: the head, the body in the pieces it came in, its end or what kept it from ending. It is here for the time
it takes: aiohttp took several times as long for a request, a sixth of all that one waits for in this house.
Source: https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

MAX_HEAD_BYTES = 64 * 2**10
"""Of a head, and of whatever else is no content: trailers, the extensions of chunks."""
MAX_WAITING_BYTES = 256 * 2**10
"""Of a body, until whoever reads it has taken some: more is not received meanwhile."""


class Failed(Exception):
    """Something went wrong between us and an endpoint: in words, and the error's code."""

    def __init__(self, how: str, code: str) -> None:
        super().__init__(how)
        self.how, self.code = how, code


class Response:
    """What an endpoint answers. ``headers`` are by their names in lower case, the first of each."""

    def __init__(self, connection: Connection, status: int, headers: dict[str, str]) -> None:
        self.status, self.headers = status, headers
        self.is_read = False
        """Set by who saw its last word: how it ends is then nobody's to wait for."""
        self.piece = connection.piece

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def body(self, max_bytes: int) -> bytes:
        """All of it, or its first ``max_bytes`` and what came along with them."""
        pieces, length = list[bytes](), 0
        while length < max_bytes and (piece := await self.piece()):
            pieces.append(piece)
            length += len(piece)
        return b"".join(pieces)


class Alarm:
    """Rings when its time has come and nobody moved it meanwhile. Moving it costs nothing: a timer that fires early
    looks, and is set anew. It is moved with every piece of an answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop, self._ring = loop, ring
        self._due = self._looks_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds
        if self._due < self._looks_at:
            if self._timer is not None:
                self._timer.cancel()
            self._look_at(self._due)

    def stop(self) -> None:
        """The timer is left to fire once, and to find nothing to do."""
        self._due = math.inf

    def cancel(self) -> None:
        self._due = math.inf
        if self._timer is not None:
            self._timer.cancel()

    def _look_at(self, due: float) -> None:
        self._looks_at = due
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._looks_at, self._timer = math.inf, None
        if self._due <= self._loop.time():
            self._due = math.inf
            self._ring()
        elif self._due < math.inf:
            self._look_at(self._due)


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        """A stream comes in a piece an event, so what the parser calls for each is no function of ours."""
        self._parser = HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._silence = 0.0
        self._alarm = Alarm(self._loop, self._too_late)
        self._when_whole: Callable[[], None] | None = None
        """Set when nobody reads the answer any more, and it has to end by itself."""
        self._failure: tuple[str, str] | None = None
        self._asked = False
        self._status = 0
        self._headers: dict[str, str] = {}
        self._has_head = self._is_whole = self._lasts = False
        self._num_waiting = self._num_without_content = 0
        self._is_paused = False

    # --- what is asked --------------------------------------------------------------------------------------------

    async def ask(self, request: bytes, silence: float) -> Response:
        """The answer, its head read. Whoever waits for its bytes does so for at most ``silence`` seconds each time."""
        self._asked, self._silence = True, silence
        self._has_head = self._is_whole = False
        self._num_without_content = 0
        self._transport.write(request)
        while not self._has_head:
            await self._more()
        return Response(self, self._status, self._headers)

    async def piece(self) -> bytes:
        """What has come of the body; nothing at its end."""
        while not self._pieces:
            if self._is_whole:
                return b""
            await self._more()
        whole = b"".join(self._pieces)
        self._forget_pieces()
        if self._is_paused and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()
        return whole

    def may_serve_again(self) -> bool:
        """After an answer that was read to its end, and that was not the connection's last."""
        return self._is_whole and self._lasts and not self._is_paused and self.is_open

    def may_yet_end(self) -> bool:
        """And serve again then: its answer goes on."""
        return self._lasts and not self._is_whole and self.is_open

    def finish(self, seconds: float, then: Callable[[], None]) -> None:
        """Of an answer whose last word was read: ``then`` when it has ended, closed when it has not after so long."""
        self._when_whole = then
        self._alarm.set(seconds)

    def rest(self, seconds: float) -> None:
        """Closed after so long, or when the endpoint says anything, unless `wake` comes first."""
        self._asked = False
        self._forget_pieces()
        self._alarm.set(seconds)

    def wake(self) -> None:
        self._alarm.stop()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        """In the middle of an answer, so that the endpoint stops working on it."""
        self._transport.abort()

    async def start_tls(self, context: ssl.SSLContext, host: str) -> Connection:
        """Itself as the way to another one, through a proxy that was asked to be no more than that."""
        inner = Connection()
        inner._transport = await self._loop.start_tls(self._transport, inner, context, server_hostname=host)
        return inner

    @property
    def is_open(self) -> bool:
        return self._failure is None and not self._transport.is_closing()

    async def _more(self) -> None:
        """Until something came. Raises `Failed` when nothing will."""
        if self._failure is not None:
            raise Failed(*self._failure)
        self._waiter = self._loop.create_future()
        self._alarm.set(self._silence)
        try:
            await self._waiter
        finally:
            self._alarm.stop()
            self._waiter = None

    def _too_late(self) -> None:
        if self._waiter is not None:
            self._fail("it fell silent", "upstream_timeout")
        else:
            self.close()

    def _fail(self, how: str, code: str) -> None:
        self._failure = self._failure or (how, code)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- what comes, for asyncio ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._asked:
            return self.close()  # Whatever it is, it answers nothing.
        num_pieces = len(self._pieces)
        try:
            self._parser.feed_data(data)
            self._num_without_content = 0 if len(self._pieces) > num_pieces else self._num_without_content + len(data)
            if self._num_without_content > MAX_HEAD_BYTES:
                raise HttpParserError("a head without end")
        except (HttpParserError, HttpParserUpgrade):
            self._fail("what it answered is not HTTP", "upstream_malformed")
        self._num_waiting += len(data)
        if self._num_waiting > MAX_WAITING_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._alarm.cancel()
        self._when_whole = None
        if exc is None and self._has_head and self._ends_with_connection():
            self._is_whole = True
        if isinstance(exc, ssl.SSLError):
            self._fail("no secure connection came about", "upstream_tls")
        else:
            self._fail("it cut its answer short", "upstream_cut_off")

    # --- what comes, for the parser -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._is_whole:
            raise HttpParserError("two answers to one question")
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:  # Else it is a trailer.
            self._headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self._lasts = self._parser.should_keep_alive()
        self._has_head = self._status // 100 != 1  # Those say that the answer is yet to come.

    def on_message_complete(self) -> None:
        self._is_whole = self._has_head
        if self._when_whole is not None:
            then, self._when_whole = self._when_whole, None
            self._loop.call_soon(then)

    def _forget_pieces(self) -> None:
        self._pieces.clear()
        self._num_waiting = 0

    def _ends_with_connection(self) -> bool:
        return "content-length" not in self._headers and "chunked" not in self._headers.get("transfer-encoding", "")
