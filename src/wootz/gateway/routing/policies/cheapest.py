"""The least price for a request of this size: a model with dear input may be the cheap one for a short question with a
long answer. Whose price nobody knows is asked last."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from wootz.core.tool_wire import ModelRequest
from wootz.gateway.routing.candidate import Candidate, answer_tokens, prompt_tokens


def price_of(candidate: Candidate, num_prompt: int, num_answer: int) -> Decimal:
    """USD times a million."""
    price = candidate.price(num_prompt)
    return Decimal("Infinity") if price is None else num_prompt * price.input + num_answer * price.output


def cheapest(candidates: Sequence[Candidate], request: ModelRequest) -> list[Candidate]:
    sizes = prompt_tokens(request), answer_tokens(request)
    return sorted(candidates, key=lambda one: price_of(one, *sizes))
