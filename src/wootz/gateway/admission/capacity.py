"""How many requests a model copes with, learnt as TCP learns how much a network carries: a place more for every round
that fills all of them, three tenths fewer when it says that it is too much (AIMD; Chiu and Jain, 1989).

"Too much" is a 429 or 503 of its own, or an answer that did not begin in time. Requests that were under way when it
said so say nothing new, so a round of refusals counts once.
"""

from __future__ import annotations

from wootz.core import RateLimitError, UnavailableError, WootzError

FIRST = 16.0
LEAST = 1.0
MOST = 4096.0
FEWER = 0.7
LATE = ("first_token_timeout", "upstream_timeout")


class LearntCapacity:
    def __init__(self) -> None:
        self._limit = FIRST
        self._lowered_at = -1.0

    @property
    def places(self) -> int:
        return int(self._limit)

    def ended(self, error: BaseException | None, began: float, now: float, *, full: bool) -> None:
        """A request that began then has ended now; ``full``: all places were taken."""
        if _is_too_much(error):
            if began > self._lowered_at:
                self._limit, self._lowered_at = max(LEAST, self._limit * FEWER), now
        elif error is None and full:
            self._limit = min(MOST, self._limit + 1 / self._limit)


class FixedCapacity:
    def __init__(self, places: int) -> None:
        self.places = places

    def ended(self, error: BaseException | None, began: float, now: float, *, full: bool) -> None:
        pass


def _is_too_much(error: BaseException | None) -> bool:
    return isinstance(error, RateLimitError | UnavailableError) or (
        isinstance(error, WootzError) and error.code in LATE
    )
