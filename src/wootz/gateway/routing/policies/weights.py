"""At random, by weight: over many requests each target gets its share. The rest stand in the order they would have
been drawn in, so that a failing target's share is divided among the others by weight, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from wootz.core.tool_wire import ModelRequest
from wootz.gateway.routing.candidate import Candidate, Policy


def weights(random: Random) -> Policy:
    def order(candidates: Sequence[Candidate], _request: ModelRequest) -> list[Candidate]:
        # The least of independent exponential times is drawn with its rate as weight (Efraimidis, Spirakis 2006).
        times = {one.name: random.expovariate(one.weight) if one.weight else math.inf for one in candidates}
        return sorted(candidates, key=lambda one: times[one.name])

    return order
