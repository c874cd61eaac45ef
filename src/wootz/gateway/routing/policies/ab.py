"""A/B: a stable part of the users gets each variant, by weight. The same user gets the same one every time, from every
process; another route divides them anew, as its name is in the hash.

Making a weight larger moves users only from other variants to that one where it is the last of two; so list the new
variant last and raise it: nobody goes back and forth during a rollout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from random import Random

from wootz.core.tool_wire import ModelRequest
from wootz.gateway.routing.candidate import Candidate, Policy


def position(route: str, identity: str) -> float:
    """Where a user stands in [0, 1)."""
    digest = hashlib.sha256(f"{route}\0{identity}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def ab(route: str, random: Random) -> Policy:
    def order(candidates: Sequence[Candidate], request: ModelRequest) -> list[Candidate]:
        identity = f"{request.journey.caller}\0{request.user or ''}".strip("\0")
        place = position(route, identity) if identity else random.random()
        bounds = list(accumulate(one.weight for one in candidates))
        chosen = next((number for number, bound in enumerate(bounds) if place * bounds[-1] < bound), 0)
        return [candidates[chosen], *candidates[:chosen], *candidates[chosen + 1 :]]

    return order
