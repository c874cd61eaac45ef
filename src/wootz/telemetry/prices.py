"""What an answer costs: prices are USD per million tokens, all arithmetic is `Decimal` and exact.

A price with up to 6 decimals gives a cost with up to 12, which is what the ledger holds (`ExactUSD`). A finer price
is rounded half-even once, here, per call: so a stored cost is always the billed cost, and sums of it are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import cached_property
from operator import mul
from typing import NamedTuple

from wootz.core.journey import Lane
from wootz.core.wire import Usage
from wootz.store import USD_DECIMALS

# `Decimal`'s default context rounds at 28 digits, which a large enough product could exceed.
EXACT = Context(prec=100)
_LAST_DECIMAL = Decimal(1).scaleb(-USD_DECIMALS)


@dataclass(frozen=True)
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

    @cached_property
    def picodollars(self) -> tuple[int, ...] | None:
        """What one token of each `Tokens.parts` costs, where that is a whole number: 1e-12 dollars a token are 1e-6 a
        million. Sums of whole numbers are exact, and made in a fifth of the time."""
        each = [price.as_integer_ratio() for price in (self.input, self.cached_input, self.cache_write, self.output)]
        whole = [(numerator * 10**6, denominator) for numerator, denominator in each]
        return None if any(n % d for n, d in whole) else tuple(n // d for n, d in whole)


class Tokens(NamedTuple):
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

    @property
    def parts(self) -> tuple[int, int, int, int]:
        """Fresh prompt, cached, written, completion. No token is in two, whatever an endpoint says of them."""
        cached = min(self.cached, self.prompt)
        written = min(self.written, self.prompt - cached)
        return self.prompt - cached - written, cached, written, self.completion


class Item(NamedTuple):
    """A line of the bill: so many tokens at so much per million."""

    name: str
    tokens: int
    price: Decimal


def items(tokens: Tokens, price: Price, lane: Lane = "interactive") -> list[Item]:
    """What a call's cost is the sum of."""
    prices = (price.input, price.cached_input, price.cache_write, price.output)
    if lane == "batch":
        prices = tuple(EXACT.multiply(each, price.batch) for each in prices)
    return [Item(*line) for line in zip(_NAMES, tokens.parts, prices, strict=True) if line[1]]


_NAMES = ("prompt", "cached", "cache write", "completion")


def cost(tokens: Tokens, price: Price | None, lane: Lane = "interactive") -> Decimal:
    """USD for one call; 0 where no price is known, which the record says of itself."""
    if price is None:
        return Decimal(0)
    if lane != "batch" and (each := price.picodollars) is not None:
        return Decimal(sum(map(mul, tokens.parts, each))).scaleb(-USD_DECIMALS, EXACT)
    total = Decimal(0)
    for item in items(tokens, price, lane):
        total = EXACT.fma(item.tokens, item.price, total)
    return EXACT.scaleb(total, -6).quantize(_LAST_DECIMAL, ROUND_HALF_EVEN, EXACT)


def cost_of_units(units: Decimal, price: Price | None) -> Decimal:
    """USD for what a task made."""
    if price is None or not units:
        return Decimal(0)
    return EXACT.multiply(units, price.unit).quantize(_LAST_DECIMAL, ROUND_HALF_EVEN, EXACT)
