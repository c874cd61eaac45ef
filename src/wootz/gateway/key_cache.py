"""What tokens were found to be, kept for a second: a request costs no read of the database, and a key that another
process revoked is refused a second later.

Only tokens that are known are kept, by their hash, so strangers can't fill it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")
SWEEP_AT = 10_000


class KeyCache(Generic[Value]):
    SECONDS = 1.0

    def __init__(
        self, find: Callable[[str], Awaitable[Value | None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._find, self._clock = find, clock
        self._kept: dict[str, tuple[float, Value]] = {}
        self._finding: dict[str, asyncio.Task[Value | None]] = {}

    async def get(self, digest: str) -> Value | None:
        kept = self._kept.get(digest)
        if kept is not None and self._clock() - kept[0] < self.SECONDS:
            return kept[1]
        if (finding := self._finding.get(digest)) is None:  # Whoever comes meanwhile waits for the same answer.
            finding = self._finding[digest] = asyncio.create_task(self._refresh(digest))
        return await asyncio.shield(finding)

    def clear(self) -> None:
        """Something was changed: what is being read now may be old already."""
        self._kept.clear()
        self._finding.clear()

    async def _refresh(self, digest: str) -> Value | None:
        task, began = asyncio.current_task(), self._clock()
        try:
            value = await self._find(digest)
        finally:
            current = self._finding.get(digest) is task
            if current:
                del self._finding[digest]
        if current:
            self._kept.pop(digest, None)
            if value is not None:
                if len(self._kept) >= SWEEP_AT:
                    self._kept = {key: kept for key, kept in self._kept.items() if began - kept[0] < self.SECONDS}
                self._kept[digest] = (began, value)
        return value
