"""What tokens were found to be, kept for a second: a request costs no read of the database, and a key that another
process revoked is refused a second later.

Those in use are read again before their second is over, all together, so that no request waits for it: a key that is
used once in two seconds would else be read each time, which takes longer than all else on a request's way.

Only tokens that are known are kept, by their hash, so strangers can't fill it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from wootz.core import UnavailableError

Value = TypeVar("Value")
SWEEP_AT = 10_000
AHEAD_SECONDS = 0.5
IN_USE_SECONDS = 60.0
MOST_AHEAD = 200
"""Those that were used last; of others each is read by the next who comes with it."""


class Kept(Generic[Value]):
    def __init__(self, read: float, value: Value) -> None:
        self.read = self.used = read
        self.value = value


class KeyCache(Generic[Value]):
    """``find`` reads what many tokens are, by their hashes; unknown ones are left out."""

    SECONDS = 1.0

    def __init__(
        self,
        find: Callable[[Sequence[str]], Awaitable[Mapping[str, Value]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find, self._clock = find, clock
        self._kept: dict[str, Kept[Value]] = {}
        self._finding: dict[str, asyncio.Task[Value | None]] = {}

    async def get(self, digest: str) -> Value | None:
        kept, now = self._kept.get(digest), self._clock()
        if kept is not None and now - kept.read < self.SECONDS:
            kept.used = now
            return kept.value
        if (finding := self._finding.get(digest)) is None:  # Whoever comes meanwhile waits for the same answer.
            finding = self._finding[digest] = asyncio.create_task(self._refresh(digest))
        return await asyncio.shield(finding)

    def clear(self) -> None:
        """Something was changed: what is being read now may be old already."""
        self._kept = {}
        self._finding.clear()

    async def _refresh(self, digest: str) -> Value | None:
        task, began = asyncio.current_task(), self._clock()
        try:
            value = (await self._find([digest])).get(digest)
        finally:
            current = self._finding.get(digest) is task
            if current:
                del self._finding[digest]
        if current:
            self._kept.pop(digest, None)
            if value is not None:
                if len(self._kept) >= SWEEP_AT:
                    self._kept = {key: kept for key, kept in self._kept.items() if began - kept.read < self.SECONDS}
                self._kept[digest] = Kept(began, value)
        return value

    async def read_ahead(self) -> None:
        """For ever: read again those in use."""
        while True:
            await asyncio.sleep(AHEAD_SECONDS)
            kept, began = self._kept, self._clock()
            in_use = [digest for digest, one in kept.items() if began - one.used < IN_USE_SECONDS]
            if len(in_use) > MOST_AHEAD:
                in_use = sorted(in_use, key=lambda digest: kept[digest].used)[-MOST_AHEAD:]
            try:
                found = await self._find(in_use) if in_use else {}
            except UnavailableError:
                continue  # Whoever comes next is told.
            if kept is not self._kept:  # Something was changed meanwhile.
                continue
            for digest in in_use:
                one, value = kept.get(digest), found.get(digest)
                if one is None or one.read > began:
                    continue
                if value is None:
                    del kept[digest]
                else:
                    one.read, one.value = began, value
