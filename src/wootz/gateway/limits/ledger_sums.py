"""What the ledger says a key, team, user or tag has used: where a period's counter begins.

A team's, user's or tag's sum is that of the keys which belong to it now: moving a key takes its past along.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import func, select

from wootz.gateway.keys import KeyStore
from wootz.gateway.limits.meters import Meter, to_picodollars
from wootz.store import Database
from wootz.telemetry.ledger import requests


class LedgerSums:
    def __init__(self, database: Database, keys: KeyStore) -> None:
        self._database, self._keys = database, keys

    async def __call__(self, meter: Meter) -> int:
        """Tokens, or picodollars for a budget, of all requests that began in the meter's period."""
        c = requests.c
        is_budget = meter.limit_name == "budget_exceeded"
        amount = func.sum(c.cost, type_=c.cost.type) if is_budget else func.sum(c.prompt_tokens + c.completion_tokens)
        query = select(amount).where(c.key_id.in_(await self._keys.keys_of(meter.subject)))
        query = query.where(c.started_at >= datetime.fromtimestamp(meter.start, UTC))
        if meter.end:
            query = query.where(c.started_at < datetime.fromtimestamp(meter.end, UTC))
        async with self._database.session() as session:
            total = await session.scalar(query)
        return 0 if total is None else to_picodollars(total) if is_budget else int(total)
