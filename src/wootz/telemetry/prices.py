"""What an answer costs: prices are USD per million tokens, all arithmetic is `Decimal` and exact.

A price with up to 6 decimals gives a cost with up to 12, which is what the ledger holds (`ExactUSD`). A finer price
is rounded half-even once, here, per call: so a stored cost is always the billed cost, and sums of it are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal

from wootz.core.journey import Lane
from wootz.core.wire import Usage
from wootz.store import USD_DECIMALS

# `Decimal`'s default context rounds at 28 digits, which a large enough product could exceed.
EXACT = Context(prec=100)
_LAST_DECIMAL = Decimal(1).scaleb(-USD_DECIMALS)


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens; ``batch`` is the part of them that the batch lane pays."""

    input: Decimal
    cached_input: Decimal
    cache_write: Decimal
    output: Decimal
    batch: Decimal
    unit: Decimal
    """USD for one of what is not counted in tokens: an image, a second, a character."""
    version: str
    """Where it stands and since when it holds: ``prices.toml 2025-08-07 gpt-5``."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """``prompt`` includes ``cached`` (read from the provider's cache) and ``written`` (put into it)."""

    prompt: int = 0
    cached: int = 0
    written: int = 0
    completion: int = 0

    @staticmethod
    def of(usage: Usage) -> Tokens:
        return Tokens(usage.prompt_tokens, usage.cached_tokens, usage.cache_write_tokens, usage.completion_tokens)

    @property
    def any(self) -> bool:
        return bool(self.prompt or self.completion)


@dataclass(frozen=True, slots=True)
class Item:
    """A line of the bill: so many tokens at so much per million."""

    name: str
    tokens: int
    price: Decimal


def items(tokens: Tokens, price: Price, lane: Lane = "interactive") -> list[Item]:
    """What a call's cost is the sum of. Tokens of no kind are counted twice, whatever an endpoint says of them."""
    cached = min(tokens.cached, tokens.prompt)
    written = min(tokens.written, tokens.prompt - cached)
    part = price.batch if lane == "batch" else Decimal(1)
    lines = (
        ("prompt", tokens.prompt - cached - written, price.input),
        ("cached", cached, price.cached_input),
        ("cache write", written, price.cache_write),
        ("completion", tokens.completion, price.output),
    )
    return [Item(name, count, EXACT.multiply(each, part)) for name, count, each in lines if count]


def cost(tokens: Tokens, price: Price | None, lane: Lane = "interactive") -> Decimal:
    """USD for one call; 0 where no price is known, which the record says of itself."""
    if price is None:
        return Decimal(0)
    total = Decimal(0)
    for item in items(tokens, price, lane):
        total = EXACT.fma(item.tokens, item.price, total)
    return EXACT.scaleb(total, -6).quantize(_LAST_DECIMAL, ROUND_HALF_EVEN, EXACT)


def cost_of_units(units: Decimal, price: Price | None) -> Decimal:
    """USD for what a task made."""
    if price is None:
        return Decimal(0)
    return EXACT.multiply(units, price.unit).quantize(_LAST_DECIMAL, ROUND_HALF_EVEN, EXACT)
