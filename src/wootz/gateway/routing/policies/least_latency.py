"""The shortest time to an answer like this one: to its first token, and from there on through its length.

What was never measured is tried first; several measured ones within a tenth of the best are drawn by lot, or everyone
would rush to the one that is ahead by a millisecond."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from wootz.core.tool_wire import ModelRequest
from wootz.gateway.routing.candidate import Candidate, Policy, answer_tokens

NEARLY = 1.1


def expected_seconds(candidate: Candidate, num_tokens: int) -> float:
    return (candidate.first_token or 0.0) + (candidate.inter_token or 0.0) * num_tokens


def least_latency(random: Random) -> Policy:
    def order(candidates: Sequence[Candidate], request: ModelRequest) -> list[Candidate]:
        num_tokens = answer_tokens(request)
        seconds = {one.name: expected_seconds(one, num_tokens) for one in candidates}
        good = NEARLY * min(seconds.values(), default=0.0)
        return sorted(candidates, key=lambda one: (max(seconds[one.name], good), random.random()))

    return order
