"""Ceilings out of what was used: ten times the 99th percentile, so that nobody meets them but a loop that ran wild.

Percentiles are by nearest rank: of days in the whole span (a day without use counts as nothing) for tokens and money a
day, and of minutes with any use for requests and tokens a minute.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import ROUND_UP, Decimal
from typing import Any

from sqlalchemy import BigInteger, cast, func, select

from wootz.gateway.limits.rules import Limits
from wootz.store import Database
from wootz.telemetry.ledger import requests

FACTOR = 10
PERCENTILE = Decimal("0.99")


async def suggest(database: Database, now: datetime, days: int, *, factor: int = FACTOR) -> dict[str, Limits]:
    """By key id, for every key that was used in the last ``days``."""
    since = now - timedelta(days=days)
    by_day, by_minute = await _used(database, since, now, 86400), await _used(database, since, now, 60)
    limits = {}
    for key_id, used_days in by_day.items():
        used_minutes = by_minute[key_id]
        tokens = factor * percentile([tokens for _, tokens, _ in used_days], days)
        cost = factor * percentile([cost for _, _, cost in used_days], days)
        fields: dict[str, Any] = {
            "requests_per_minute": factor * percentile([count for count, _, _ in used_minutes], len(used_minutes)),
            "tokens_per_minute": factor * percentile([tokens for _, tokens, _ in used_minutes], len(used_minutes)),
            "tokens_per_day": tokens,
        }
        if cost:
            fields |= {"budget_usd": cost.quantize(Decimal("0.01"), ROUND_UP), "budget_period": "daily"}
        limits[key_id] = Limits.parse({name: value for name, value in fields.items() if value})
    return limits


def percentile(values: Sequence[Any], num_values: int) -> Any:
    """By nearest rank, of ``num_values`` numbers of which those that are not given are 0."""
    rank = math.ceil(PERCENTILE * num_values)
    padded = [0] * (num_values - len(values)) + sorted(values)
    return padded[rank - 1]


async def _used(
    database: Database, since: datetime, until: datetime, unit_seconds: int
) -> dict[str, list[tuple[int, int, Decimal]]]:
    """Requests, tokens and USD of each day or minute in which a key was used, counted back from ``until``."""
    c = requests.c
    tokens = func.sum(c.prompt_tokens + c.completion_tokens)
    begun = func.strftime("%s", c.started_at) if database.dialect == "sqlite" else func.extract("epoch", c.started_at)
    group = (int(until.timestamp()) - cast(begun, BigInteger)) // unit_seconds
    query = select(c.key_id, func.count(), tokens, func.sum(c.cost, type_=c.cost.type))
    query = query.where(c.key_id.is_not(None), c.started_at > since, c.started_at <= until).group_by(c.key_id, group)
    used = defaultdict(list)
    async with database.session() as session:
        for key_id, count, num_tokens, cost in await session.execute(query):
            used[key_id].append((count, int(num_tokens), cost))
    return used
