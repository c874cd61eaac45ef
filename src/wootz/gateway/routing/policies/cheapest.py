"""The least price for a request of this size: a model with dear input may be the cheap one for a short question with a
long answer. What nobody knows the price of comes last."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from wootz.core.tool_wire import ModelRequest
from wootz.gateway.routing.candidate import Candidate, answer_tokens, prompt_tokens


def price_of(candidate: Candidate, num_prompt: int, num_answer: int) -> Decimal:
    """USD times a million."""
    if candidate.price is None:
        return Decimal("Infinity")
    return num_prompt * candidate.price.input + num_answer * candidate.price.output


def cheapest(candidates: Sequence[Candidate], request: ModelRequest) -> list[Candidate]:
    sizes = prompt_tokens(request), answer_tokens(request)
    return sorted(candidates, key=lambda one: price_of(one, *sizes))
