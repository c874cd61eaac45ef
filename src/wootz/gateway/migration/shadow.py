"""Copies of requests for a model on trial. Their answers are measured and thrown away.

A copy is sent when the user's own answer is under way, by a task that nobody waits for: whatever becomes of it, that
answer knows nothing of it. It walks the gateway's path like any request, with no key, so that no limit and no budget of
the user's is touched; its record is in the lane "shadow", under the new model's name. At most so many are under way
at once, and what comes while they are is not copied.

Not copied are requests that would do something twice (tools that the provider runs), nor is what would lead back to a
person: the user's name, the client's metadata, the body.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from wootz.core import WootzError
from wootz.core.journey import Journey
from wootz.core.wire import ChatRequest, CompletionRequest, SamplingFields
from wootz.gateway.migration.store import Migration
from wootz.gateway.migration.tags import ARM, MIGRATION
from wootz.gateway.routing.policies.ab import position

if TYPE_CHECKING:
    from wootz.gateway.gateway import Gateway

log = logging.getLogger(__name__)

ROUTE = "shadow"
LONGEST_SECONDS = 300.0
LEFT_OUT = ("metadata", "store", "previous_response_id")
"""Fields that say whose it is, or leave something behind at the provider."""


class Shadows:
    def __init__(self, gateway: Gateway, concurrency: int) -> None:
        self._gateway = gateway
        self._concurrency = concurrency
        self._under_way = set[asyncio.Task[None]]()
        self.dropped = 0
        """How many were not copied because too many were under way."""

    def wants(self, migration: Migration, request: SamplingFields, request_id: str) -> bool:
        """By a stable hash of the request's id: every replica would say the same."""
        if migration.stage != "shadow" or request.journey.lane != "interactive":
            return False
        if any(tool.type != "function" for tool in getattr(request, "tools", None) or ()):
            return False
        return position(f"shadow {migration.id}", request_id) < migration.plan.shadow_share

    def send(self, migration: Migration, request: SamplingFields, request_id: str) -> None:
        """Returns at once."""
        if len(self._under_way) >= self._concurrency:
            self.dropped += 1
            return
        task = asyncio.create_task(self._answer(_copy(migration, request), request_id), name="shadow")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _answer(self, request: ChatRequest | CompletionRequest, request_id: str) -> None:
        id, gateway = f"{request_id}.shadow", self._gateway
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                answer: AsyncGenerator[Any, None]
                if isinstance(request, ChatRequest):
                    answer = gateway.chat(None, request, request_id=id, route=ROUTE)
                else:
                    answer = gateway.complete(None, request, request_id=id, route=ROUTE)
                async with aclosing(answer) as chunks:
                    async for _ in chunks:
                        pass
        except (WootzError, TimeoutError):
            pass  # It is in its record.
        except Exception:
            log.exception("shadow of request %s", request_id)

    async def close(self) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)


def _copy(migration: Migration, request: SamplingFields) -> Any:
    """Shallow: nobody changes a request."""
    changes = {"model": migration.new, "user": None, "safety_identifier": None, "priority": None}
    copy = request.model_copy(update=changes)
    for name in LEFT_OUT:
        (copy.__pydantic_extra__ or {}).pop(name, None)
    tags = {MIGRATION: migration.id, ARM: "shadow"}
    copy._journey = Journey(lane="shadow", tags=tags, cache_control="no-store", bounds=request.journey.bounds)
    return copy
