"""How numbers are written on the pages."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from wootz.gateway.limits import Limits

EMPTY = "–"


def count(number: int | None) -> str:
    """1234567 -> 1,234,567"""
    return EMPTY if number is None else f"{number:,}"


def short(number: int) -> str:
    """134515008 -> 135M"""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def seconds(value: float | None) -> str:
    """0.0213 -> 21.3 ms, 1.5 -> 1.50 s"""
    if value is None:
        return EMPTY
    if value < 1:
        milliseconds = value * 1000
        return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.1f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def usd(amount: Decimal) -> str:
    """Every digit that is there, and at least cents: 0.00001230 -> $0.0000123, 2 -> $2.00"""
    whole, _, fraction = f"{amount:f}".partition(".")
    return f"${whole}.{fraction.rstrip('0').ljust(2, '0')}"


def cents(amount: Decimal) -> str:
    """Rounded to cents, or where that says too little to three digits: 1234.567 -> $1,234.57, 0.00123456 -> $0.00123"""
    if amount >= 1 or amount == 0:
        return f"${amount:,.2f}"
    return f"${round(amount, 2 - amount.adjusted()).normalize():f}"


def share(part: int, whole: int) -> str:
    """3, 4 -> 75%"""
    return EMPTY if not whole else f"{part / whole:.1%}" if 0 < part / whole < 0.1 else f"{part / whole:.0%}"


def limits(of: Limits) -> str:
    """What holds for a key: 60 requests/min, $5.00 monthly"""
    counts = (
        (of.requests_per_minute, "requests/min"),
        (of.tokens_per_minute, "tokens/min"),
        (of.tokens_per_day, "tokens a day"),
        (of.concurrent_requests, "at once"),
        (of.conversation_steps, "requests a conversation"),
    )
    words = [f"{count:,} {name}" for count, name in counts if count is not None]
    if of.budget_usd is not None:
        words.append(f"{usd(of.budget_usd)} {'in all' if of.budget_period == 'never' else of.budget_period}")
    if of.conversation_usd is not None:
        words.append(f"{usd(of.conversation_usd)} a conversation")
    return ", ".join(words) or "No limit"


def instant(moment: datetime | None) -> str:
    """UTC, for where no script runs; the page's script rewrites it in the reader's own time zone."""
    return EMPTY if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S UTC")


FILTERS = {
    "count": count,
    "short": short,
    "seconds": seconds,
    "usd": usd,
    "cents": cents,
    "share": share,
    "limits": limits,
    "instant": instant,
}
