"""How many replicas there should be now: a pure function of what is seen and of the policy.

What is seen is the *demand* in erlangs, requests a second times seconds of a request (Little's law): the places that
would be busy if there were enough. Busy places alone stop growing when all are taken, and a long queue says how long
there were too few, not how many are wanted.

Up early, for a replica takes minutes to load its model: when demand passes ``up`` of the places, at once, by as many as
bring it back to the middle between ``up`` and ``down``. Down late: when it is under ``down``, to what the highest
demand of the last ``look_back`` seconds needed. As one step never crosses the gap, a load that trembles does not make
it go back and forth; and as nothing goes that was needed within the hour, neither does one that is back in half of it.

A replica is rented by the hour, so one that is let go early has been paid for: it is let go when its hour is nearly
over (``billing``). What is known beforehand is not waited for: from a `PreWarm`'s time on there are at least so many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

DAY = 86_400.0


@dataclass(frozen=True)
class PreWarm:
    """Every day from ``start`` to ``end`` (seconds after midnight) at least so many replicas."""

    start: float
    end: float
    replicas: int

    def holds(self, now: float) -> bool:
        time = now % DAY
        return self.start <= time < self.end if self.start <= self.end else time >= self.start or time < self.end


@dataclass(frozen=True, kw_only=True)
class Policy:
    up: float = 0.6
    down: float = 0.3
    look_back: float = 3600.0
    floor: int = 1
    """Never fewer: with none, the next request waits until one is loaded."""
    ceiling: int = 64
    billing: float = 3600.0
    """A replica is paid for in pieces so long."""
    release_within: float = 300.0
    """It is let go when no more than this is left of what is paid for."""
    pre_warm: Sequence[PreWarm] = ()

    def wanted(self, demand: float, places: int) -> int:
        """Replicas at which the demand is in the middle between ``up`` and ``down``."""
        return math.ceil(demand / places / ((self.up + self.down) / 2))


@dataclass(frozen=True, kw_only=True)
class State:
    """``demand`` is in erlangs, ``peak`` its highest in the last ``look_back`` seconds; ``paid_left`` says of each
    running replica for how many more seconds it has been paid."""

    now: float
    demand: float
    peak: float
    places: int
    """Of a replica."""
    running: int
    loading: int
    paid_left: Sequence[float]


@dataclass(frozen=True)
class Decision:
    start: int = 0
    stop: int = 0
    why: str = ""


def decide(policy: Policy, state: State) -> Decision:
    there = state.running + state.loading
    floor = max([policy.floor, *(warm.replicas for warm in policy.pre_warm if warm.holds(state.now))])
    if there < floor:
        return Decision(start=floor - there, why=f"at least {floor}")
    busy = state.demand / (there * state.places)
    if busy > policy.up:
        wanted = min(policy.ceiling, policy.wanted(state.demand, state.places))
        return Decision(start=max(0, wanted - there), why=f"{busy:.0%} busy")
    if busy < policy.down and not state.loading:
        kept = max(floor, policy.wanted(max(state.demand, state.peak), state.places))
        over = sum(left <= policy.release_within for left in state.paid_left)
        return Decision(stop=max(0, min(there - kept, over)), why=f"{busy:.0%} busy")
    return Decision()
