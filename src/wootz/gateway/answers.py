"""Send an answer while watching the client: who goes away stops the work at once, streamed or not.

A stream's status is only sent with its first chunk, so whatever fails before that is a proper HTTP error. What
fails later is an event with the error in it, after which the stream ends without ``[DONE]``; where there are no events,
the body is left unfinished, and the connection cut.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from functools import cache
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from wootz.core import WootzError
from wootz.core.media import SpeechChunk
from wootz.core.wire import ChatChunk, Completion

Chunk = TypeVar("Chunk", ChatChunk, Completion, SpeechChunk)


TURN_SECONDS = 0.002
"""An answer whose chunks are all there lets others have their turn after so long."""
WATCH_AFTER_SECONDS = 0.01
"""Work that is done sooner than this is not worth a watcher."""


class StreamedAnswer(Response):
    """Server-sent events as OpenAI's: each chunk a ``data:`` line, then ``[DONE]``."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[Chunk, None], *, include_usage: bool) -> None:
        """The framework would write down a body's headers here; those of a stream are known."""
        self.status_code, self.background = 200, None
        self.raw_headers = list(_headers_of(self.media_type))
        self.chunks = chunks
        self.include_usage = include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.chunks) as chunks:
            if await _unless_gone(receive, self._stream(send)):
                await _to_the_end(chunks)

    async def _stream(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        started, turn_began = False, time.perf_counter()
        try:
            async for chunk in self.chunks:
                events = self.events(chunk)
                if is_last := self.is_last(chunk):
                    events += self.last_events()
                elif not events:
                    continue
                if not started:
                    await send(start)
                    started = True
                await send({"type": "http.response.body", "body": events, "more_body": not is_last})
                if is_last:
                    return
                if (now := time.perf_counter()) - turn_began > TURN_SECONDS:
                    turn_began = now
                    await asyncio.sleep(0)
            events = self.last_events()
        except WootzError as error:
            if not started:
                raise
            events = self.error_events(error)
        if events is None:
            return
        if not started:
            await send(start)
        await send({"type": "http.response.body", "body": events})

    def is_last(self, chunk: Any) -> bool:
        """Whether the answer ends with it, and what its models do after it is nobody's to wait for."""
        return chunk.usage is not None

    def events(self, chunk: Any) -> bytes:
        """A chunk as it goes over the wire; nothing for one that the client is not told of."""
        if chunk.usage is not None and not self.include_usage:
            return b""
        written = chunk.model_dump_json().encode()
        if isinstance(chunk, ChatChunk) and len(chunk.pieces) > 1:
            return _apart(written, chunk)
        return _event(written)

    def last_events(self) -> bytes:
        return _event(b"[DONE]")

    def error_events(self, error: WootzError) -> bytes | None:
        """None where there is no way to say it."""
        return _event(msgspec.json.encode(error.to_openai()))


class WholeAnswer(Response):
    """One JSON body, from a model or ready to be sent."""

    media_type = "application/json"

    def __init__(
        self, answer: Coroutine[Any, Any, BaseModel | bytes], rest: AsyncGenerator[Any, None] | None = None
    ) -> None:
        """``rest`` is what is left of a model's chunks when the answer is there; nobody waits for it."""
        # What the framework would write down here (headers, a body) is known then.
        self.status_code, self.background = 200, None
        self.answer, self.rest = answer, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.rest is None:
            await _unless_gone(receive, self._send_whole(send))
            return
        async with aclosing(self.rest) as rest:
            if await _unless_gone(receive, self._send_whole(send)):
                await _to_the_end(rest)

    async def _send_whole(self, send: Send) -> None:
        answer = await self.answer
        body = answer if isinstance(answer, bytes) else answer.model_dump_json().encode()
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", self.media_type.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def answer_with(
    chunks: AsyncGenerator[Chunk, None],
    fold: Callable[[AsyncGenerator[Chunk, None]], Coroutine[Any, Any, BaseModel]],
    *,
    stream: bool | None,
    include_usage: bool,
) -> Response:
    """The chunks as they come, or folded into one by ``fold``."""
    return StreamedAnswer(chunks, include_usage=include_usage) if stream else WholeAnswer(fold(chunks), chunks)


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _apart(written: bytes, chunk: ChatChunk) -> bytes:
    """A chunk that was several events before it came here, as these events."""
    choice, (*before, last) = chunk.choices[0], chunk.pieces
    text, reason = choice.delta.content, choice.finish_reason
    head, found, tail = written.partition(b'"content":' + _spelled(text))
    if not found or "".join(chunk.pieces) != text:  # It was given another text on its way.
        return _event(written)
    head, tail = b"data: " + head, tail + b"\n\n"
    goes_on = tail.replace(b'"finish_reason":"%s"' % reason.encode(), b'"finish_reason":null', 1) if reason else tail
    events = [head + b'"content":' + _spelled(piece) + goes_on for piece in before]
    if last:
        events.append(head + b'"content":' + _spelled(last) + tail)
    else:
        events.append(head.partition(b'"delta":{')[0] + b'"delta":{' + tail)
    return b"".join(events)


_spelled = msgspec.json.Encoder().encode


@cache
def _headers_of(media_type: str) -> tuple[tuple[bytes, bytes], ...]:
    """Of a stream that no proxy is to gather before it passes it on."""
    content_type = f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type
    return (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"), (b"content-type", content_type.encode())


async def _to_the_end(chunks: AsyncGenerator[Any, None]) -> None:
    """What is left to do for an answer that was told; should that fail, it was told all the same."""
    with suppress(WootzError):
        async for _ in chunks:
            pass


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work; cancel it, and wait until it has let go of everything, when the client goes away first. Whether it
    is done."""
    here, is_gone = asyncio.current_task(), False
    assert here is not None
    watching: asyncio.Task[None] | None = None

    def begin_to_watch() -> None:
        nonlocal watching
        watching = asyncio.create_task(watch())

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        here.cancel()

    beginning = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, begin_to_watch)
    try:
        await work
        return True
    except asyncio.CancelledError:
        if not is_gone or here.uncancel():  # Somebody else cancels us, as well.
            raise
        return False
    finally:
        beginning.cancel()
        if watching is not None:
            watching.cancel()
