"""What an answer costs: prices are USD per million tokens, all arithmetic is `Decimal` and exact.

A price with up to 6 decimals gives a cost with up to 12, which is what the ledger holds (`ExactUSD`). A finer price
is rounded half-even once, here, per request: so a stored cost is always the billed cost, and sums of it are exact.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal

from wootz.core import PriceConfig
from wootz.core.wire import Usage
from wootz.store import USD_DECIMALS

# `Decimal`'s default context rounds at 28 digits, which a large enough product could exceed.
_EXACT = Context(prec=100)


def cost(usage: Usage, price: PriceConfig | None) -> Decimal:
    """The price of one request: cached prompt tokens at their own price, the others at the input price."""
    if price is None:
        return Decimal(0)
    cached_price = price.input if price.cached_input is None else price.cached_input
    fresh = usage.prompt_tokens - usage.cached_tokens
    total = _EXACT.fma(fresh, price.input, _EXACT.multiply(usage.cached_tokens, cached_price))
    total = _EXACT.fma(usage.completion_tokens, price.output, total)
    return _EXACT.scaleb(total, -6).quantize(Decimal(1).scaleb(-USD_DECIMALS), ROUND_HALF_EVEN, _EXACT)
