"""Loads: a rate of requests over time, those that make autoscalers go wrong, and one's own.

Arrivals are drawn by thinning (Lewis and Shedler, "Simulation of nonhomogeneous Poisson processes by thinning", 1979).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Trace:
    """Requests a second at each time; ``highest`` is never exceeded."""

    name: str
    rate: Callable[[float], float]
    highest: float
    seconds: float

    def arrivals(self, random: Random) -> Iterator[float]:
        now = 0.0
        while True:
            now += random.expovariate(self.highest)
            if now >= self.seconds:
                return
            if random.random() * self.highest < self.rate(now):
                yield now


def steady(rate: float, seconds: float) -> Trace:
    return Trace("steady", lambda now: rate, rate, seconds)


def working_day(peak: float, seconds: float = 86_400.0, *, night: float = 0.1, opens: float = 9 * 3600) -> Trace:
    """Little at night, everything from nine on, a dip at noon, and out by six."""

    def rate(now: float) -> float:
        hour = (now % 86_400 - opens) / 3600
        if not 0 <= hour < 9:
            return night * peak
        return peak * (0.7 if 3 <= hour < 4 else 1.0)

    return Trace("working day", rate, peak, seconds)


def waves(peak: float, seconds: float, *, period: float = 7200.0) -> Trace:
    """Slowly up and down between a fifth and all of it."""
    return Trace("waves", lambda now: peak * (0.6 - 0.4 * math.cos(2 * math.pi * now / period)), peak, seconds)


def spikes(peak: float, seconds: float, *, every: float = 1800.0, length: float = 60.0) -> Trace:
    """A tenth, and for a minute in each half hour everything: shorter than a replica takes to load."""
    return Trace("spikes", lambda now: peak if now % every < length else peak / 10, peak, seconds)


def around_the_threshold(rate: float, seconds: float, *, swing: float = 0.1) -> Trace:
    """What makes a policy without a gap go back and forth: a load that trembles around one level."""
    return Trace(
        "around the threshold", lambda now: rate * (1 + swing * math.sin(now / 97)), rate * (1 + swing), seconds
    )


def recorded(points: Sequence[tuple[float, float]]) -> Trace:
    """Times and rates as they were; each rate holds until the next time."""
    times = [time for time, _ in points]
    rates = [rate for _, rate in points]

    def rate(now: float) -> float:
        return rates[max(0, bisect_right(times, now) - 1)]

    seconds = times[-1] + (times[-1] - times[-2] if len(times) > 1 else 3600.0)
    return Trace("recorded", rate, max(rates), seconds)
