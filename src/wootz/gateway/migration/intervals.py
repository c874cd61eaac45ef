"""How sure it is that one model does worse than another: an interval for each, and of the two one for the difference.

Each model's figure has an interval of its own kind: a share Wilson's score interval (honest at 0 and for few), a
percentile one between two of the sorted values themselves, whatever their distribution, a mean the usual one. MOVER
makes of two intervals one for the difference, whatever they are; for two shares that is Newcombe's method 10.

Sources: Wilson 1927; Newcombe, *Statistics in Medicine* 17, 1998; Zou and Donner, *Statistics in Medicine* 27, 2008.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance

FEW = 30
"""Values under which a mean gets no interval: money per request is skewed, and the normal curve is not yet near."""


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


NOTHING_KNOWN = Interval(math.nan, -math.inf, math.inf)


def share(number: int, of: int, z: float) -> Interval:
    if not of:
        return Interval(math.nan, 0.0, 1.0)
    p = number / of
    middle, scale = p + z**2 / (2 * of), 1 + z**2 / of
    spread = z * math.sqrt(p * (1 - p) / of + z**2 / (4 * of**2))
    return Interval(p, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def log_percentile(values: Sequence[float], q: float, z: float) -> Interval:
    """Of the logarithm, so that a difference is a ratio. Unbounded where there are too few values to say."""
    n = len(values)
    if not n:
        return NOTHING_KNOWN
    ordered = sorted(max(value, 1e-9) for value in values)
    spread = z * math.sqrt(n * q * (1 - q))
    low, high = math.floor(n * q - spread), math.ceil(n * q + spread) + 1  # Ranks, the first being 1.
    return Interval(
        math.log(ordered[min(n, math.ceil(n * q)) - 1]),
        math.log(ordered[low - 1]) if low >= 1 else -math.inf,
        math.log(ordered[high - 1]) if high <= n else math.inf,
    )


def mean(values: Sequence[float], z: float) -> Interval:
    if len(values) < FEW:
        return Interval(fmean(values) if values else math.nan, -math.inf, math.inf)
    middle = fmean(values)
    spread = z * math.sqrt(pvariance(values, middle) / (len(values) - 1))
    return Interval(middle, middle - spread, middle + spread)


def log_mean(values: Sequence[float], z: float) -> Interval:
    """Of positive means; the spread is carried to the logarithm by its slope there (the delta method)."""
    plain = mean(values, z)
    if not plain.value > 0:
        return NOTHING_KNOWN
    spread = (plain.high - plain.low) / 2 / plain.value
    return Interval(math.log(plain.value), math.log(plain.value) - spread, math.log(plain.value) + spread)


def difference(new: Interval, old: Interval) -> Interval:
    """New less old."""
    value = new.value - old.value
    if math.isnan(value):
        return NOTHING_KNOWN
    return Interval(
        value,
        value - math.hypot(new.value - new.low, old.high - old.value),
        value + math.hypot(new.high - new.value, old.value - old.low),
    )
