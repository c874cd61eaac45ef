"""Places for the models that have a capacity (``[admission]``). It stands behind the caches, so a hit takes no place,
and before the route, so that retries and fallbacks are of one request that was let in.

A model without a capacity is asked as if none of this were here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TypeVar

from wootz.core import Config
from wootz.core.media import SpeechChunk
from wootz.core.tool_wire import ModelRequest
from wootz.core.wire import LEAST_URGENT, ChatChunk, Completion, SamplingFields
from wootz.gateway.admission.capacity import FixedCapacity, LearntCapacity
from wootz.gateway.admission.counts import QueueCollector
from wootz.gateway.admission.queue import ModelQueue, Place
from wootz.gateway.keys import Key
from wootz.telemetry import Telemetry

Chunk = TypeVar("Chunk", ChatChunk, Completion, SpeechChunk)
Asked = TypeVar("Asked", bound=ModelRequest)
Whole = TypeVar("Whole", bound=ModelRequest)
Answer = TypeVar("Answer")


class Admission:
    def __init__(self, config: Config, telemetry: Telemetry) -> None:
        options = config.admission
        self.weights = options.weights
        self.queues = {
            name: ModelQueue(
                name,
                LearntCapacity() if places == "learnt" else FixedCapacity(places),
                max_waiting=options.max_waiting,
                max_wait_seconds=options.max_wait_seconds,
                batch_share=options.batch_share,
            )
            for name, places in options.capacity.items()
        }
        if self.queues:
            telemetry.metrics.registry.register(QueueCollector(self.queues))

    def ask(
        self, key: Key | None, request: ModelRequest, ask: Callable[[Asked], AsyncGenerator[Chunk, None]]
    ) -> Callable[[Asked], AsyncGenerator[Chunk, None]]:
        """``ask``, from a place where there are places."""
        if (queue := self.queues.get(request.model)) is None:
            return ask

        async def from_a_place(asked: Asked) -> AsyncGenerator[Chunk, None]:
            async with self._place(queue, key, asked) as place, aclosing(ask(asked)) as chunks:
                async for chunk in chunks:
                    if chunk.usage is not None:
                        place.used = chunk.usage.total_tokens or None
                    yield chunk

        return from_a_place

    def once(self, key: Key | None, ask: Callable[[Whole], Awaitable[Answer]]) -> Callable[[Whole], Awaitable[Answer]]:
        """The same for what is answered in one piece."""

        async def from_a_place(asked: Whole) -> Answer:
            if (queue := self.queues.get(asked.model)) is None:
                return await ask(asked)
            async with self._place(queue, key, asked):
                return await ask(asked)

        return from_a_place

    def _place(self, queue: ModelQueue, key: Key | None, request: ModelRequest) -> AbstractAsyncContextManager[Place]:
        user = (key.user.id if key.user else key.id) if key else request.user or ""
        if isinstance(request, SamplingFields):
            urgency = request.urgency
        else:
            urgency = LEAST_URGENT if request.journey.lane == "batch" else 0
        weight = self._weight(key) if self.weights and key else 1.0
        return queue.place(user, weight=weight, urgency=urgency, journey=request.journey)

    def _weight(self, key: Key) -> float:
        names = (key.user and key.user.name, key.team and key.team.name, key.name)
        return next((self.weights[name] for name in names if name in self.weights), 1.0)
