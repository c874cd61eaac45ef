"""What a workload costs with a tokenizer, to the cent: characters are counted, tokens and dollars follow.

A price per token compares only models with the same tokenizer. Exact arithmetic throughout: ratios are fractions,
money is decimal.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction


@dataclass(frozen=True)
class Workload:
    """One kind of conversation, and how often it happens. Prices are USD for a million tokens."""

    system_characters: int
    user_characters: int
    response_characters: int
    conversations_per_day: int
    input_price: Decimal
    output_price: Decimal
    days: int = 30


@dataclass(frozen=True)
class TokenCost:
    input_tokens: int
    """In one conversation, as `output_tokens`; each rounded to a whole token."""
    output_tokens: int
    tokens_per_day: int
    cost: Decimal
    """For all days, in USD, not rounded."""

    @property
    def tokens_per_conversation(self) -> int:
        return self.input_tokens + self.output_tokens


def token_cost(workload: Workload, tokens_per_character: Fraction) -> TokenCost:
    asked = round((workload.system_characters + workload.user_characters) * tokens_per_character)
    answered = round(workload.response_characters * tokens_per_character)
    each = asked * workload.input_price + answered * workload.output_price
    total = workload.conversations_per_day * workload.days * each / 1_000_000
    return TokenCost(asked, answered, (asked + answered) * workload.conversations_per_day, total)
