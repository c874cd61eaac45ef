"""How long a deployment lets one wait: moving averages that a policy compares, and the quantile that a hedge waits for.

Averages fade while nothing is measured. Else a deployment that was slow once would never be asked again, and never
get to show that it has recovered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

WEIGHT = 0.2
"""Of a new measurement in the average."""
HALF_LIFE = 60.0
"""Seconds without a measurement after which an average counts half."""
REMEMBERED = 100
ENOUGH = 20
"""Measurements without which no quantile is told."""


class Latency:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first_token: float | None = None
        self._inter_token: float | None = None
        self._measured = 0.0
        self._recent: deque[float] = deque(maxlen=REMEMBERED)
        self._new: tuple[list[float], list[float]] = ([], [])

    def measure_first_token(self, seconds: float) -> None:
        self._first_token = _blend(self._first_token, seconds)
        self._recent.append(seconds)
        self._measured = self._clock()
        self._note(0, seconds)

    def measure_inter_token(self, seconds: float) -> None:
        self._inter_token = _blend(self._inter_token, seconds)
        self._note(1, seconds)

    def news(self) -> tuple[float | None, float | None]:
        """Means of what was measured here since this was asked last."""
        first, inter = (sum(some) / len(some) if some else None for some in self._new)
        self._new = ([], [])
        return first, inter

    def hear(self, first_token: float | None, inter_token: float | None) -> None:
        """What another process tells as its `news` counts as one measurement; not for the quantile, which is of single
        ones."""
        if first_token is not None:
            self._first_token = _blend(self._first_token, first_token)
            self._measured = self._clock()
        if inter_token is not None:
            self._inter_token = _blend(self._inter_token, inter_token)

    def _note(self, which: int, seconds: float) -> None:
        if len(self._new[which]) < REMEMBERED:  # Where nobody asks for news they are not kept for ever.
            self._new[which].append(seconds)

    @property
    def first_token(self) -> float | None:
        """Seconds; None before there is a measurement."""
        return None if self._first_token is None else self._first_token * self._faded

    @property
    def inter_token(self) -> float | None:
        return None if self._inter_token is None else self._inter_token * self._faded

    @property
    def p95_first_token(self) -> float | None:
        """95 in 100 answers began within it; None with fewer than `ENOUGH` measurements."""
        if len(self._recent) < ENOUGH:
            return None
        return sorted(self._recent)[int(0.95 * len(self._recent))]

    @property
    def _faded(self) -> float:
        return 0.5 ** ((self._clock() - self._measured) / HALF_LIFE)


def _blend(average: float | None, new: float) -> float:
    return new if average is None else average + WEIGHT * (new - average)
