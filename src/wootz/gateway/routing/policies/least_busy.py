"""The fewest requests under way for its weight; by lot where that is the same for several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from wootz.core.tool_wire import ModelRequest
from wootz.gateway.routing.candidate import Candidate, Policy


def least_busy(random: Random) -> Policy:
    def load(candidate: Candidate) -> float:
        return (candidate.in_flight + 1) / candidate.weight if candidate.weight else math.inf

    def order(candidates: Sequence[Candidate], _request: ModelRequest) -> list[Candidate]:
        return sorted(candidates, key=lambda one: (load(one), random.random()))

    return order
