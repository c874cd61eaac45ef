"""A model's places, and the queue before them.

While there are places, getting one is a comparison and a few additions. When there are none, requests wait in the order
of `FairOrder`, at most so many and so long. Whoever is sent away is told when to come back: after the time that the
queue needs to empty itself at the rate at which requests have been ending.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from wootz.core import RateLimitError
from wootz.core.journey import Journey
from wootz.core.wire import LEAST_URGENT
from wootz.gateway.admission.capacity import FixedCapacity, LearntCapacity
from wootz.gateway.admission.fair import Entry, FairOrder

ENDS_KEPT = 64
SLOWEST_RETRY_SECONDS = 120.0
FIRST_GUESS_TOKENS = 500.0


class Place:
    """What a request has while it is worked on; set ``used`` to its tokens when they are known."""

    __slots__ = ("began", "entry", "used")

    def __init__(self, entry: Entry, began: float) -> None:
        self.entry, self.began = entry, began
        self.used: int | None = None


class ModelQueue:
    def __init__(
        self,
        name: str,
        capacity: FixedCapacity | LearntCapacity,
        *,
        max_waiting: int,
        max_wait_seconds: float,
        batch_share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.capacity = name, capacity
        self.max_waiting, self.max_wait_seconds, self.batch_share = max_waiting, max_wait_seconds, batch_share
        self.running = self.batch_running = 0
        self.num_refused = self.num_waited = 0
        self._order = FairOrder()
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=ENDS_KEPT)
        self._typical = FIRST_GUESS_TOKENS
        """Tokens of a request, lately."""

    @property
    def waiting(self) -> int:
        return self._order.num_waiting

    @asynccontextmanager
    async def place(self, user: str, *, weight: float, urgency: int, journey: Journey) -> AsyncIterator[Place]:
        """Held for the block. Raises `RateLimitError` for who is one too many, or waited too long."""
        entry = Entry(user, urgency, self._typical / weight)
        if not self._order.num_waiting and self._has_room(urgency):
            self._order.start(entry)
            self._count(entry, 1)
        else:
            await self._wait(entry, journey)
        place, error = Place(entry, self._clock()), None
        try:
            yield place
        except Exception as failure:
            error = failure
            raise
        finally:
            self._end(place, weight, error)

    def retry_after(self) -> float:
        """Seconds until the queue as it is now is empty, at the rate of late."""
        if not self._ends:
            return 1.0
        rate = len(self._ends) / max(self._clock() - self._ends[0], 1e-3)
        return min(max((self.waiting + 1) / rate, 1.0), SLOWEST_RETRY_SECONDS)

    def _has_room(self, urgency: int) -> bool:
        places = self.capacity.places
        if urgency < LEAST_URGENT:
            return self.running < places
        return self.running < places and self.batch_running < max(1, int(self.batch_share * places))

    async def _wait(self, entry: Entry, journey: Journey) -> None:
        if self.waiting >= self.max_waiting:
            last = self._order.last(entry) if self.max_waiting else entry
            if last is entry:
                raise self._refusal("all places and all seats in the queue are taken")
            self._order.leave(last)
            last.waker.set_exception(self._refusal("others waited with less"))
        loop = asyncio.get_running_loop()
        entry.waker = loop.create_future()
        self._order.wait(entry)
        self.num_waited += 1
        timer = loop.call_later(self.max_wait_seconds, self._give_up, entry)
        self._let_in()  # A batch line may wait while there is room for others.
        try:
            with journey.span("queue", ahead=self.waiting - 1):
                await entry.waker
        except asyncio.CancelledError:
            if entry.flow is None:
                self._order.leave(entry)
            else:  # Let in at the very moment.
                self._order.end(entry, 0.0)
                self._count(entry, -1)
                self._let_in()
            raise
        finally:
            timer.cancel()

    def _let_in(self) -> None:
        while self._order.num_waiting:
            least_urgent = LEAST_URGENT if self._has_room(LEAST_URGENT) else LEAST_URGENT - 1
            if not self._has_room(0) or (entry := self._order.next(least_urgent)) is None:
                return
            self._count(entry, 1)
            entry.waker.set_result(None)

    def _count(self, entry: Entry, change: int) -> None:
        self.running += change
        if entry.urgency >= LEAST_URGENT:
            self.batch_running += change

    def _give_up(self, entry: Entry) -> None:
        if entry.flow is None and not entry.waker.done():
            self._order.leave(entry)
            entry.waker.set_exception(self._refusal(f"none became free within {self.max_wait_seconds:g} s"))

    def _end(self, place: Place, weight: float, error: Exception | None) -> None:
        now, entry, full = self._clock(), place.entry, self.running >= self.capacity.places
        self._ends.append(now)
        if place.used is not None:
            self._typical += (place.used - self._typical) / 32
        self._order.end(entry, entry.cost if place.used is None else place.used / weight)
        self._count(entry, -1)
        self.capacity.ended(error, place.began, now, full=full)
        if self._order.num_waiting:
            self._let_in()

    def _refusal(self, why: str) -> RateLimitError:
        self.num_refused += 1
        message = f'"{self.name}" has no place for this request: {why}'
        return RateLimitError(message, retry_after=self.retry_after(), code="overloaded")
