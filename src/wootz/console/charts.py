"""Charts as geometry: where each bar is, and how tall. A template draws them as SVG, the stylesheet colours them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

WIDTH, HEIGHT = 1000.0, 240.0
"""Of the drawing's own coordinates; the page stretches it."""
GAP = 0.22
"""Of a bar's place that stays empty."""


@dataclass(frozen=True)
class Series:
    name: str
    values: tuple[Decimal, ...]

    @property
    def total(self) -> Decimal:
        return sum(self.values, Decimal(0))


@dataclass(frozen=True)
class Bar:
    series: int
    name: str
    bucket: str
    value: Decimal
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    bars: tuple[Bar, ...]
    series: tuple[Series, ...]
    ticks: tuple[tuple[Decimal, float], ...]
    """Values of the grid's lines, and where each is."""
    labels: tuple[str, ...]
    """One a bucket, most of them empty where there are many: what stands under the axis."""


def stacked_bars(buckets: Sequence[str], series: Sequence[Series], max_labels: int = 8) -> Chart:
    """One bar a bucket, the series on top of each other from the first on."""
    tops = [sum((one.values[n] for one in series), Decimal(0)) for n in range(len(buckets))]
    ceiling = nice_ceiling(max(tops, default=Decimal(0)))
    place = WIDTH / max(len(buckets), 1)
    bars = []
    for n, bucket in enumerate(buckets):
        y = HEIGHT
        for number, one in enumerate(series):
            if one.values[n] > 0:
                height = float(one.values[n] / ceiling) * HEIGHT
                y -= height
                x = n * place + place * GAP / 2
                bars.append(
                    Bar(number, one.name, bucket, one.values[n], *_round(x, y, place * (1 - GAP), max(height, 0.5)))
                )
    ticks = tuple((ceiling * part / 4, HEIGHT * (1 - part / 4)) for part in range(5))
    step = max(1, math.ceil(len(buckets) / max_labels))
    return Chart(
        tuple(bars), tuple(series), ticks, tuple(name if n % step == 0 else "" for n, name in enumerate(buckets))
    )


def nice_ceiling(value: Decimal) -> Decimal:
    """The next of 1, 2, 4, 5, 8, 10 times a power of ten, so that quarters of it are short numbers."""
    if value <= 0:
        return Decimal(1)
    power = Decimal(10) ** value.adjusted()
    return next(factor * power for factor in map(Decimal, (1, 2, 4, 5, 8, 10)) if factor * power >= value)


def _round(*numbers: float) -> tuple[float, ...]:
    return tuple(round(number, 2) for number in numbers)
