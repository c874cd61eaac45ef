"""What a month costs, and what it would cost with a prompt cache, a semantic cache, a cascade: one after the other.

The measures multiply, so each is counted on what the ones before have left: its marginal saving depends on the order,
the total does not. All of it is arithmetic on averages, exact in `Decimal`; measure hit rates before believing them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

from wootz.telemetry.prices import EXACT, Price


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of an average call. ``cached`` of the ``prompt`` tokens are found in the provider's cache."""

    calls_a_day: Decimal
    prompt: Decimal
    completion: Decimal
    cached: Decimal = Decimal(0)
    days: int = 30

    def per_call(self, price: Price) -> Decimal:
        dollars = (
            (self.prompt - self.cached) * price.input
            + self.cached * price.cached_input
            + self.completion * price.output
        )
        return EXACT.scaleb(dollars, -6)


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """A cheap model is asked first, and its answer good enough for this ``share`` of the calls."""

    share: Decimal
    price: Price
    counts_failures: bool = True
    """What the cheap model said to the others is paid for, too. (Reckonings that leave this out flatter cascades.)"""


@dataclass(frozen=True)
class Step:
    name: str
    per_call: Decimal
    """Dollars for an average call, those that a cache answered included."""
    a_month: Decimal
    marginal: Decimal
    """The share of the step before that it saves."""
    total: Decimal
    """The share of the first step that it and all before it save."""


def what_if(
    traffic: Traffic,
    price: Price,
    *,
    cached: Decimal = Decimal(0),
    semantic: Decimal = Decimal(0),
    cascade: Cascade | None = None,
) -> list[Step]:
    """The steps, beginning with the traffic as it is. ``semantic`` is the share of calls that a cache answers."""
    steps: list[tuple[str, Decimal]] = [("as it is", traffic.per_call(price))]
    warm = replace(traffic, cached=cached)
    answered = Decimal(1)
    per_call = steps[0][1]
    if cached:
        per_call = warm.per_call(price)
        steps.append((f"prompt cache of {cached} tokens", per_call))
    if semantic:
        answered = 1 - semantic
        steps.append((f"semantic cache, {semantic:.0%} hits", answered * per_call))
    if cascade:
        cheap = traffic.per_call(cascade.price)
        tried = Decimal(1) if cascade.counts_failures else cascade.share
        per_call = tried * cheap + (1 - cascade.share) * per_call
        steps.append((f"cascade, {cascade.share:.0%} stay cheap", answered * per_call))
    return _savings(steps, traffic)


def _savings(steps: list[tuple[str, Decimal]], traffic: Traffic) -> list[Step]:
    first = before = steps[0][1]
    result = []
    for name, per_call in steps:
        result.append(
            Step(
                name=name,
                per_call=per_call,
                a_month=per_call * traffic.calls_a_day * traffic.days,
                marginal=1 - per_call / before if before else Decimal(0),
                total=1 - per_call / first if first else Decimal(0),
            )
        )
        before = per_call
    return result
