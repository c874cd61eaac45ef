"""An endpoint that speaks OpenAI's protocol and fails as it is told to, byte by byte on a real socket.

A fault is a coroutine that gets the connection's writer after the request was read; what it leaves out (the end of the
headers, of a chunk, of the answer) the gateway never gets.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

Fault = Callable[["FaultyEndpoint", asyncio.StreamWriter], Awaitable[None]]

USAGE = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}


class FaultyEndpoint:
    """Use as a context manager. ``fault`` is what each request from now on gets; ``requests`` are the bodies."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.fault: Fault = good
        self.requests: list[dict[str, Any]] = []
        self.left = threading.Event()
        """A client closed a connection that we held open."""
        self._tls = tls
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._stop.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await reader.readexactly(1)
            if first == b"\x16":  # A TLS greeting: a plain server answers in plain text, and hangs up.
                return writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.split("content-length:")[1].split("\r\n")[0])
            self.requests.append(json.loads(await reader.readexactly(length)))
            gone = asyncio.create_task(reader.read())
            acting = asyncio.create_task(_run(self.fault(self, writer)))
            await asyncio.wait((gone, acting), return_when=asyncio.FIRST_COMPLETED)
            if not acting.done():
                self.left.set()
            acting.cancel()
            gone.cancel()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    def __enter__(self) -> FaultyEndpoint:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"


async def _run(fault: Awaitable[None]) -> None:
    with suppress(ConnectionError):
        await fault


# --- what is said -------------------------------------------------------------------------------------------------


def _head(status: str = "200 OK", kind: str = "text/event-stream", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", "connection: close", "transfer-encoding: chunked"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _piece(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _event(delta: dict[str, Any] | None = None, usage: dict[str, int] | None = None, end: str | None = None) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": end}]
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "far", "choices": choices}
    return _piece(b"data: " + json.dumps(chunk | ({"usage": usage} if usage else {})).encode() + b"\n\n")


ROLE = _event({"role": "assistant", "content": ""})
HALF = _event({"content": "Hel"})
REST = _event({"content": "lo"}) + _event({}, end="stop") + _event(usage=USAGE) + _piece(b"data: [DONE]\n\n")
END = b"0\r\n\r\n"


async def _say(writer: asyncio.StreamWriter, *parts: bytes) -> None:
    for part in parts:
        writer.write(part)
        await writer.drain()


async def _for_ever() -> None:
    await asyncio.Event().wait()


# --- the faults ---------------------------------------------------------------------------------------------------


async def good(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
    await _say(writer, _head(), ROLE, HALF, REST, END)


def status(line: str, **headers: str) -> Fault:
    async def fault(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
        body = json.dumps({"error": {"message": "as told", "type": "server_error", "code": None}}).encode()
        await _say(writer, _head(line, "application/json", **headers), _piece(body), END)

    return fault


async def hang_before_headers(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
    await _for_ever()


async def hang_before_content(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
    await _say(writer, _head(), ROLE)
    await _for_ever()


async def hang_mid_stream(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
    await _say(writer, _head(), ROLE, HALF)
    await _for_ever()


async def cut_before_content(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
    await _say(writer, _head(), ROLE)


async def cut_mid_stream(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
    await _say(writer, _head(), ROLE, HALF)


async def cut_after_many(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
    """Of which many came together."""
    await _say(writer, _head(), ROLE, 40 * HALF)


async def end_without_usage(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
    """The body ends properly, the answer does not."""
    await _say(writer, _head(), ROLE, HALF, END)


async def malformed_events(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
    await _say(writer, _head(), ROLE, _piece(b"data: {this is no JSON\n\n"), END)


async def malformed_mid_stream(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
    await _say(writer, _head(), ROLE, HALF, _piece(b"data: {this is no JSON\n\n"), END)


async def web_page(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
    await _say(writer, _head(kind="text/html"), _piece(b"<html><body>Sign in to the network</body></html>"), END)


async def not_http(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
    await _say(writer, b"220 mail.example ESMTP\r\n")


def long_answer(pieces: int, text: str) -> Fault:
    async def fault(endpoint: FaultyEndpoint, writer: asyncio.StreamWriter) -> None:
        await _say(writer, _head(), ROLE, *([_event({"content": text})] * pieces), REST, END)

    return fault
