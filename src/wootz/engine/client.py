"""`EngineClient`: an engine process as an async object. Imports no PyTorch.

The connection is kept up in the background: while the engine is away, loading or restarting, `ready` is False and
requests are refused with a retryable error; those in flight when it went away fail with one too.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from wootz.core.errors import (
    BadRequestError,
    NotFoundError,
    RateLimitError,
    UnavailableError,
    UnsupportedError,
    WootzError,
)
from wootz.engine import protocol
from wootz.engine.protocol import (
    CacheBlocks,
    Cancel,
    Counted,
    CountTokens,
    Done,
    Encode,
    Encoded,
    Failed,
    Finished,
    FromEngine,
    GetStats,
    Hello,
    LoadAdapter,
    Order,
    Output,
    Prefill,
    SamplingParams,
    Sleep,
    Stats,
    Submit,
    ToEngine,
    ToolUse,
    UnloadAdapter,
    UpdateWeights,
    Wake,
)

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.05, 1.0


Event = Output | Finished | Encoded | Counted | Done | CacheBlocks
"""What an engine says about one request, unless it fails."""


class EngineClient:
    """The engine behind one Unix socket. Any number of requests at once; belongs to one event loop."""

    def __init__(self, socket_path: str | Path) -> None:
        self.socket_path = str(socket_path)
        self.hello: Hello | None = None
        """What the engine said about itself; None while there is no connection."""
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._requests: dict[str, asyncio.Queue[Event | WootzError]] = {}
        self._adapters: dict[str, str] = {}
        """Names and folders of those loaded at run time: an engine that starts again is told of them again."""
        self._stats: list[asyncio.Future[Stats]] = []

    @property
    def ready(self) -> bool:
        return self.hello is not None

    def start(self) -> None:
        """Begin to connect, in the running event loop; returns at once."""
        self._task = asyncio.get_running_loop().create_task(self._stay_connected(), name=f"engine {self.socket_path}")

    async def close(self) -> None:
        """Let go of the engine, which then cancels what it still does for us. Requests in flight fail."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def generate(
        self,
        *,
        messages: list[dict[str, Any]] | None = None,
        text: str | None = None,
        token_ids: list[int] | None = None,
        params: SamplingParams | None = None,
        tools: ToolUse | None = None,
        adapter: str | None = None,
        request_id: str | None = None,
        priority: int = 0,
        user: str = "",
    ) -> AsyncGenerator[Output | Finished, None]:
        """Answer one prompt, given in exactly one of three forms; the last event is `Finished`.

        Closing the iterator cancels the request in the engine. Raises `BadRequestError` for what can't be served,
        `RateLimitError` when the engine's queue is full, `UnavailableError` when there is no engine or it goes away.
        """
        request_id = request_id or uuid.uuid4().hex
        if request_id in self._requests:
            raise BadRequestError(f'request id "{request_id}" is in use', code="duplicate_request_id")
        submit = Submit(
            request_id=request_id,
            params=params or SamplingParams(),
            messages=messages,
            text=text,
            token_ids=token_ids,
            priority=priority,
            user=user,
            tools=tools,
            adapter=adapter,
        )
        async with contextlib.aclosing(self._ask(submit)) as events:
            async for event in events:
                assert isinstance(event, Output | Finished)
                yield event

    async def encode(
        self,
        texts: list[str | list[int]],
        *,
        query: str | None = None,
        dimensions: int | None = None,
        truncate: bool = False,
    ) -> Encoded:
        """Vectors of the texts, or their relevance to ``query``, from an encoder. Raises as `generate` does."""
        encode = Encode(uuid.uuid4().hex, texts, query=query, dimensions=dimensions, truncate=truncate)
        async with contextlib.aclosing(self._ask(encode)) as events:
            async for event in events:
                assert isinstance(event, Encoded)
                return event
        raise AssertionError("no event ends a request in silence")

    async def count_tokens(
        self, messages: list[dict[str, Any]], tools: ToolUse | None = None, adapter: str | None = None
    ) -> int:
        """Of the prompt that these make. Raises as `generate` does."""
        count = CountTokens(uuid.uuid4().hex, messages, tools, adapter)
        async with contextlib.aclosing(self._ask(count)) as events:
            async for event in events:
                assert isinstance(event, Counted)
                return event.num_tokens
        raise AssertionError("no event ends a request in silence")

    async def sleep(self, level: int = 1) -> None:
        """Have the engine give memory back until `wake`; see `wootz.engine.Engine.sleep`. Requests wait."""
        await self._order(Sleep(uuid.uuid4().hex, level))

    async def wake(self) -> None:
        await self._order(Wake(uuid.uuid4().hex))

    async def update_weights(self, path: str) -> None:
        """Have the engine go on with the weights of this checkpoint, a folder or file on its machine."""
        await self._order(UpdateWeights(uuid.uuid4().hex, path))

    async def load_adapter(self, name: str, path: str) -> None:
        """Let requests name the adapter in this folder (of the engine's machine). Raises what is wrong with it."""
        await self._order(LoadAdapter(uuid.uuid4().hex, name, path))
        self._adapters[name] = path

    async def unload_adapter(self, name: str) -> None:
        """Requests cannot name it any more. Raises `NotFoundError`."""
        self._adapters.pop(name, None)
        await self._order(UnloadAdapter(uuid.uuid4().hex, name))

    async def _order(self, order: Order) -> None:
        async with contextlib.aclosing(self._ask(order)) as events:
            async for event in events:
                assert isinstance(event, Done)

    async def prefill(
        self, token_ids: list[int], num_blocks: int, fingerprint: str
    ) -> AsyncGenerator[CacheBlocks | Finished, None]:
        """For engines: a prompt's cache blocks from the engine that computes prompts (`wootz.engine.handover`)."""
        message = Prefill(uuid.uuid4().hex, token_ids, num_blocks, fingerprint)
        async with contextlib.aclosing(self._ask(message)) as events:
            async for event in events:
                assert isinstance(event, CacheBlocks | Finished)
                yield event

    async def _ask(self, message: Submit | Encode | CountTokens | Prefill | Order) -> AsyncGenerator[Event, None]:
        """All that the engine says about one request. Closing the iterator early cancels it."""
        request_id = message.request_id
        self._send(message)
        events = self._requests[request_id] = asyncio.Queue()
        over = False
        try:
            while not over:
                event = await events.get()
                over = not isinstance(event, Output | CacheBlocks)
                if isinstance(event, WootzError):
                    raise event
                yield event
        finally:
            del self._requests[request_id]
            if not over:
                with contextlib.suppress(UnavailableError):
                    self._send(Cancel(request_id))

    async def stats(self) -> Stats:
        """The engine's counters now. Raises `UnavailableError`."""
        self._send(GetStats())
        answer: asyncio.Future[Stats] = asyncio.get_running_loop().create_future()
        self._stats.append(answer)
        return await answer

    # --- connection -------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(self.socket_path)
                while True:
                    self._receive(await protocol.read_message(reader, protocol.decode_from_engine))
                    delay = FIRST_DELAY_SECONDS
            except (OSError, EOFError, protocol.ProtocolError):
                pass
            finally:
                self._disconnected()
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)

    def _receive(self, message: FromEngine) -> None:
        match message:
            case Output() | Finished() | Encoded() | Counted() | Done() | CacheBlocks():
                if message.request_id in self._requests:  # else it was cancelled while this was on its way
                    self._requests[message.request_id].put_nowait(message)
            case Failed():
                if message.request_id in self._requests:
                    self._requests[message.request_id].put_nowait(error_of(message))
            case Stats():
                answer = self._stats.pop(0)
                if not answer.done():
                    answer.set_result(message)
            case Hello():
                self.hello = message
                for name, path in self._adapters.items():
                    self._send(LoadAdapter(uuid.uuid4().hex, name, path))

    def _disconnected(self) -> None:
        """Fail everything in flight; whoever asks from now on is refused until the next `Hello`."""
        self.hello = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for events in self._requests.values():
            events.put_nowait(_engine_restarted())
        for answer in self._stats:
            if not answer.done():
                answer.set_exception(_engine_restarted())
        self._stats.clear()

    def _send(self, message: ToEngine) -> None:
        """Unix sockets take what is written at once or keep it in memory; an engine always reads."""
        if self.hello is None or self._writer is None:
            raise UnavailableError("the model is not ready: its engine is starting", hint="try again in a moment")
        self._writer.write(protocol.frame(message))


def _engine_restarted() -> UnavailableError:
    return UnavailableError("the model's engine went away while it answered; try again", code="engine_restarted")


def error_of(failed: Failed) -> WootzError:
    """The error the engine raised, raised here."""
    match failed.status:
        case 400 if failed.code == UnsupportedError.code:
            return UnsupportedError(failed.message, param=failed.param)
        case 400:
            return BadRequestError(failed.message, code=failed.code, param=failed.param)
        case 404:
            return NotFoundError(failed.message, code=failed.code, param=failed.param)
        case 429:
            return RateLimitError(failed.message, code=failed.code)
        case 503:
            return UnavailableError(failed.message, code=failed.code)
        case _:
            return WootzError(failed.message, code=failed.code, param=failed.param)
