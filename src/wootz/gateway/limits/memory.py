"""Counters in this process: nothing to install, and each HTTP process counts for itself.

There is no ``await`` between a check and its taking, which makes it atomic. What a period has used is asked of the
ledger at its first request; see `Period.is_of` for clocks that jump.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from wootz.gateway.limits.meters import WINDOW_SECONDS, Meter, Seed, Verdict

SWEEP_AT = 10_000
"""Periods that are known at once; nobody's request is under way in most of them."""


class MemoryCounters:
    """``clock`` is for windows and never goes back; ``wall`` is Unix time."""

    outlasts_us = False

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock, self._wall = clock, wall
        self._windows: dict[str, Window] = {}
        self._periods: dict[str, Period] = {}
        self._open: dict[str, int] = {}
        self._held: dict[str, list[Period | int | None]] = {}
        self._seeding: dict[str, asyncio.Task[None]] = {}

    async def reserve(self, id: str, meters: Sequence[Meter], seed: Seed) -> Verdict:
        while unseeded := [meter for meter in meters if meter.kind == "period" and not self._is_seeded(meter)]:
            await asyncio.gather(*(self._seed(meter, seed) for meter in unseeded))
        for meter in meters:
            retry_after = self._retry_after(meter)
            if retry_after is not None:
                return Verdict(refused_by=meter, retry_after=retry_after)
        self._held[id] = list(map(self._take, meters))
        return Verdict(left=list(map(self._left, meters)))

    def settle(self, id: str, used: Sequence[tuple[Meter, int]]) -> None:
        if (places := self._held.pop(id, None)) is None:
            return
        for (meter, amount), place in zip(used, places, strict=True):
            if meter.kind == "open":
                self._open[meter.name] -= 1
            elif isinstance(place, int):
                self._windows[meter.name].add(place, amount - meter.amount)
            elif place is not None:
                place.held -= meter.amount
                place.total += amount - meter.amount
                now = self._periods.get(meter.name)
                if now is not None and now is not place and now.start == place.start:
                    now.total += amount  # It was begun anew meanwhile, from a ledger without this request.

    async def settle_late(self, id: str, ago: float, settlement: list[Any]) -> None:
        """What the killed process had counted is gone with it; this one begins with the ledger's sums."""

    async def read(self, meters: Sequence[Meter]) -> list[tuple[int, int] | None]:
        return [self._read(meter) for meter in meters]

    async def close(self) -> None:
        pass

    # --- one meter ------------------------------------------------------------------------------------------------

    def _is_seeded(self, meter: Meter) -> bool:
        period = self._periods.get(meter.name)
        return period is not None and period.is_of(meter, self._wall())

    async def _seed(self, meter: Meter, seed: Seed) -> None:
        """The first who needs it asks; the others wait."""
        if meter.name not in self._seeding:
            self._seeding[meter.name] = asyncio.create_task(self._begin(meter, seed))
        await asyncio.shield(self._seeding[meter.name])

    async def _begin(self, meter: Meter, seed: Seed) -> None:
        try:
            total = await seed(meter)
            if len(self._periods) >= SWEEP_AT:  # Conversations come and go; the ledger knows what they used.
                self._periods = {name: period for name, period in self._periods.items() if period.held}
            self._periods[meter.name] = Period(meter.start, total)
        finally:
            del self._seeding[meter.name]

    def _retry_after(self, meter: Meter) -> float | None:
        """None when it fits, else seconds."""
        if meter.amount == 0:
            return None
        if meter.kind == "open":
            return 1.0 if self._open.get(meter.name, 0) >= meter.limit else None
        if meter.kind == "window":
            return self._window(meter).retry_after(self._clock(), meter.limit - meter.amount)
        period = self._periods[meter.name]
        if period.total + meter.amount <= meter.limit:
            return None
        if period.total - period.held + meter.amount <= meter.limit:
            return 1.0  # It is only held, and most of it will be given back.
        return max(meter.end - self._wall(), 1.0) if meter.end else math.inf

    def _read(self, meter: Meter) -> tuple[int, int] | None:
        if meter.kind == "open":
            return 0, self._open.get(meter.name, 0)
        if meter.kind == "window":
            window = self._window(meter)
            window.forget(self._clock())
            return window.total, 0
        period = self._periods.get(meter.name)
        return (period.total - period.held, period.held) if period and self._is_seeded(meter) else None

    def _take(self, meter: Meter) -> Period | int | None:
        if meter.kind == "open":
            self._open[meter.name] = self._open.get(meter.name, 0) + 1
            return None
        if meter.kind == "window":
            return self._window(meter).take(self._clock(), meter.amount)
        period = self._periods[meter.name]
        period.total += meter.amount
        period.held += meter.amount
        return period

    def _left(self, meter: Meter) -> int:
        if meter.kind == "open":
            return meter.limit - self._open[meter.name]
        return meter.limit - (self._windows if meter.kind == "window" else self._periods)[meter.name].total

    def _window(self, meter: Meter) -> Window:
        if (window := self._windows.get(meter.name)) is None:
            window = self._windows[meter.name] = Window()
        return window


class Window:
    """What was used in each of the last 60 seconds, by the second's end."""

    def __init__(self) -> None:
        self.total = 0
        self._seconds: dict[int, int] = {}

    def forget(self, now: float) -> None:
        """What has left the window."""
        while self._seconds and (second := next(iter(self._seconds))) + WINDOW_SECONDS <= now:
            self.total -= self._seconds.pop(second)

    def retry_after(self, now: float, most: int) -> float | None:
        """Seconds until no more than ``most`` is in the window; None when that is so."""
        self.forget(now)
        excess = self.total - most
        if excess <= 0:
            return None
        for second, amount in self._seconds.items():
            excess -= amount
            if excess <= 0:
                return second + WINDOW_SECONDS - now
        raise AssertionError("a request larger than the limit is refused before")

    def take(self, now: float, amount: int) -> int:
        second = math.ceil(now)
        self._seconds[second] = self._seconds.get(second, 0) + amount
        self.total += amount
        return second

    def add(self, second: int, amount: int) -> None:
        """To what was taken then, if that has not left the window."""
        if second in self._seconds:
            self._seconds[second] += amount
            self.total += amount


class Period:
    """``total`` is what was used and what is held, ``held`` the part of running requests."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total, self.held = start, total, 0

    def is_of(self, meter: Meter, now: float) -> bool:
        """Whether the meter counts here: its period, or a later one that has begun (it was measured just before).

        A later one that has *not* begun was made by a clock that went ahead and came back; the ledger knows better.
        """
        return self.start == meter.start or meter.start < self.start <= now
