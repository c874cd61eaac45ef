"""The gates of a stage: is the new model worse than the old one by more than is allowed?

Each gate is a figure that is better when it is smaller, its difference between the two models, an interval for that,
and the margin that the plan allows:

- *fail*: even the lower end of the interval is over the margin. It is nearly certain, so it rolls back.
- *pass*: even the upper end is within the margin, and there are enough requests of both. Not to have been caught is not
  enough: with ten requests nothing is ever significant.
- *wait*: neither. More requests will tell, or a person.

Gates are looked at every half minute for days, and each look is a chance to be wrong. So a failure needs more
certainty (`Z_FAIL`) than passing does, which is asked only when a stage's time is over; and the margin lies between
"the same" and "failed". How often two equal models are rolled back is measured in ``docs/migrations.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from wootz.gateway.migration.intervals import Interval, difference, log_mean, log_percentile, mean, share

Verdict = Literal["pass", "wait", "fail"]

Z_FAIL = 3.5
"""One-sided, 1 in 4300 for a single look."""
Z_PASS = 1.645
"""One-sided, 1 in 20."""
PERCENTILE = 0.95


@dataclass
class Arm:
    """What one model's requests came to in the time that is looked at."""

    requests: int = 0
    """Those that are nobody's fault but a model's: without the users' own errors, and answers out of a cache."""
    failures: int = 0
    refusals: int = 0
    first_token: list[float] = field(default_factory=list)
    duration: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    """USD, of requests whose price is known."""
    ratings: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """``old`` and ``new`` are the figures themselves; None where nothing is known. ``worse`` is the ratio of the two
    for times and costs, else their difference; ``margin`` is what it may be."""

    name: str
    verdict: Verdict
    old: float | None
    new: float | None
    worse: float | None
    margin: float
    old_count: int
    new_count: int
    why: str = ""

    @property
    def words(self) -> str:
        worse = "?" if self.worse is None else f"{self.worse:.3g}"
        return f"{self.name}: {_plain(self.old)} → {_plain(self.new)}, {worse} where {self.margin:g} is allowed"


def judge(
    old: Arm, new: Arm, margins: dict[str, float], *, min_samples: int, min_ratings: int, shadow: bool = False
) -> list[Gate]:
    """Every gate that has a margin. A ``shadow`` has no users who could be satisfied."""
    gates = []
    for name, margin in margins.items():
        match name:
            case "errors":
                gate = _shares(name, (old.failures, old.requests), (new.failures, new.requests), margin, min_samples)
            case "refusals":
                gate = _shares(name, (old.refusals, old.requests), (new.refusals, new.requests), margin, min_samples)
            case "first_token" | "duration":
                gate = _ratio(name, getattr(old, name), getattr(new, name), margin, min_samples, percentile=True)
            case "cost":
                gate = _cost(old.cost, new.cost, margin, min_samples)
            case "satisfaction" if not shadow:
                gate = _satisfaction(old.ratings, new.ratings, margin, min_ratings)
            case _:
                continue
        gates.append(gate)
    return gates


def _shares(name: str, old: tuple[int, int], new: tuple[int, int], margin: float, min_samples: int) -> Gate:
    low = difference(share(*new, Z_FAIL), share(*old, Z_FAIL)).low
    high = difference(share(*new, Z_PASS), share(*old, Z_PASS)).high
    figures = [number / of if of else None for number, of in (old, new)]
    return _gate(name, figures, low, high, margin, old[1], new[1], min_samples)


def _ratio(
    name: str, old: Sequence[float], new: Sequence[float], margin: float, min_samples: int, *, percentile: bool
) -> Gate:
    def interval(values: Sequence[float], z: float) -> Interval:
        return log_percentile(values, PERCENTILE, z) if percentile else log_mean(values, z)

    old, new = sorted(old), sorted(new)
    low = difference(interval(new, Z_FAIL), interval(old, Z_FAIL)).low
    high = difference(interval(new, Z_PASS), interval(old, Z_PASS)).high
    middles = [interval(values, Z_PASS).value for values in (old, new)]
    figures = [None if math.isnan(middle) else math.exp(middle) for middle in middles]
    low, high = (math.exp(min(end, 700.0)) for end in (low, high))
    return _gate(name, figures, low, high, margin, len(old), len(new), min_samples, ratio=True)


def _cost(old: Sequence[float], new: Sequence[float], margin: float, min_samples: int) -> Gate:
    """What costs nothing can't be a multiple of anything."""
    if not any(new) or not any(old):
        figures = [sum(costs) / len(costs) if costs else None for costs in (old, new)]
        verdict: Verdict = "wait" if min(len(old), len(new)) < min_samples else "fail" if any(new) else "pass"
        why = "the old model costs nothing" if verdict == "fail" else ""
        return Gate(
            name="cost", verdict=verdict, old=figures[0], new=figures[1], worse=None, margin=margin,
            old_count=len(old), new_count=len(new), why=why,
        )  # fmt: skip
    return _ratio("cost", old, new, margin, min_samples, percentile=False)


def _satisfaction(old: Sequence[float], new: Sequence[float], margin: float, min_ratings: int) -> Gate:
    """Few users rate. So ratings can stop a migration, but it does not wait until they prove that all is well."""
    low = difference(_lost(new, Z_FAIL), _lost(old, Z_FAIL)).low
    figures = [sum(ratings) / len(ratings) if ratings else None for ratings in (old, new)]
    gate = _gate("satisfaction", figures, low, -math.inf, margin, len(old), len(new), min_ratings)
    worse = None if gate.worse is None else -gate.worse
    return Gate(**vars(gate) | {"worse": worse, "why": gate.why.replace("requests", "ratings")})


def _lost(ratings: Sequence[float], z: float) -> Interval:
    return mean([1 - rating for rating in ratings], z)


def _gate(
    name: str,
    figures: list[float | None],
    low: float,
    high: float,
    margin: float,
    old_count: int,
    new_count: int,
    min_samples: int,
    *,
    ratio: bool = False,
) -> Gate:
    old, new = figures
    enough = min(old_count, new_count) >= min_samples
    verdict: Verdict = "fail" if low > margin else "pass" if enough and high <= margin else "wait"
    why = ""
    if verdict == "wait":
        why = "it may be more than is allowed" if enough else f"{min_samples} requests of each are needed"
    worse = None
    if old is not None and new is not None and (old or not ratio):
        worse = new / old if ratio else new - old
    return Gate(
        name=name, verdict=verdict, old=old, new=new, worse=worse, margin=margin, old_count=old_count,
        new_count=new_count, why=why,
    )  # fmt: skip


def _plain(figure: float | None) -> str:
    return "?" if figure is None else f"{figure:.3g}"
