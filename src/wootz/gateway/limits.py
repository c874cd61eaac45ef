"""Requests per minute, counted exactly: at most that many in any 60 seconds, not per calendar minute.

The times of a key's last minute are kept, so memory is bounded by the limit itself. Counters live in this process.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

from wootz.core import RateLimitError

WINDOW_SECONDS = 60.0


class RequestLimiter:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._taken: defaultdict[str, deque[float]] = defaultdict(deque)

    def take(self, key_id: str, requests_per_minute: int) -> None:
        """Count one request. Raises `RateLimitError` (the request is then not counted) with the time until the next."""
        now, taken = self._clock(), self._taken[key_id]
        while taken and taken[0] <= now - WINDOW_SECONDS:
            taken.popleft()
        if len(taken) >= requests_per_minute:
            # After a limit was lowered more than one must leave the window first.
            retry_after = taken[len(taken) - requests_per_minute] + WINDOW_SECONDS - now
            raise RateLimitError(f"this key may send {requests_per_minute} requests a minute", retry_after=retry_after)
        taken.append(now)
