"""One call for all who ask the same at the same time.

The call runs in a task of its own, so whoever asked first may go away and the others still get their answer; when the
last one has gone, the call is cancelled. Everybody gets all chunks, from the first, as they come.

One of those aboard pays: the first, by its journey's status "miss". When it leaves before the end, the next becomes
the payer and the leaver "shared", so a call is charged exactly once whoever stays. The call's attempts are therefore
written on a journey of the flight's own, which the payer's shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Generic, TypeVar

from wootz.core.journey import Journey
from wootz.core.wire import ChatChunk, Completion, SamplingFields

Chunk = TypeVar("Chunk", ChatChunk, Completion)
Asked = TypeVar("Asked", bound=SamplingFields)


class Flight(Generic[Asked, Chunk]):
    """``landed`` is awaited with the chunks when the answer has ended without an error; nobody waits for that."""

    def __init__(
        self,
        request: Asked,
        ask: Callable[[Asked], AsyncGenerator[Chunk, None]],
        landed: Callable[[list[Chunk]], Awaitable[None]],
    ) -> None:
        request = request.model_copy()
        request._journey = self._journey = replace(request.journey)
        self.chunks: list[Chunk] = []
        """Shared by all aboard: nobody changes one."""
        self.ended = self.given_up = self._paid = False
        self._error: BaseException | None = None
        self._aboard: list[Journey] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._task = asyncio.create_task(self._fly(ask(request), landed))

    async def ride(self, journey: Journey) -> AsyncGenerator[Chunk, None]:
        if self._paid:
            journey.cache = "shared"
        else:
            self._pay(journey)
        self._aboard.append(journey)
        position = 0
        try:
            while True:
                while position < len(self.chunks):
                    yield self.chunks[position]
                    position += 1
                if self.ended:
                    break
                await self._news()
            if self._error is not None:
                raise self._error
        finally:
            await self._leave(journey)

    def when_over(self, call: Callable[[], object]) -> None:
        self._task.add_done_callback(lambda _: call())

    def _pay(self, journey: Journey) -> None:
        journey.cache, journey.attempts, self._paid = "miss", self._journey.attempts, True

    async def _fly(self, answer: AsyncGenerator[Chunk, None], landed: Callable[[list[Chunk]], Awaitable[None]]) -> None:
        try:
            async with aclosing(answer) as chunks:
                async for chunk in chunks:
                    self.chunks.append(chunk)
                    self._tell()
        except Exception as error:
            self._error = error
        finally:
            self.ended = True
            self._tell()
        if self._error is None:
            await landed(self.chunks)

    async def _news(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    async def _leave(self, journey: Journey) -> None:
        if self.ended:
            return
        self._aboard.remove(journey)
        if not self._aboard:
            self.given_up = True  # Nobody may come aboard any more.
            self._task.cancel()
            await asyncio.wait([self._task])
        elif journey.cache == "miss":
            self._pay(self._aboard[0])
            journey.cache, journey.attempts = "shared", []
