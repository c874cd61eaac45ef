"""What the ledger says a key, team, user or tag has used: where a period's counter begins.

A team's, user's or tag's sum is that of the keys which belong to it now: moving a key takes its past along.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select

from wootz.gateway.keys import KeyStore
from wootz.gateway.limits.conversations import TAG, longest_today
from wootz.gateway.limits.meters import Meter, to_picodollars
from wootz.gateway.limits.rules import Subject
from wootz.telemetry.ledger import Ledger, requests

REFUSED = 429
"""What a limit refused was no step."""


class LedgerSums:
    def __init__(self, ledger: Ledger, keys: KeyStore) -> None:
        self._ledger, self._keys = ledger, keys

    async def __call__(self, meter: Meter) -> int:
        """Tokens, or picodollars for a budget, of all requests that began in the meter's period."""
        c = requests.c
        amount: Any = func.sum(c.prompt_tokens + c.completion_tokens)
        if meter.is_money:
            amount = func.sum(c.cost, type_=c.cost.type)
        elif meter.limit_name == "conversation_steps":
            amount = func.count()
        whose = meter.subject.within or meter.subject
        query = select(amount).where(c.key_id.in_(await self._keys.keys_of(whose)))
        if meter.subject.kind == "conversation":
            query = query.where(c.tags[TAG].as_string() == meter.subject.id, c.status != REFUSED)
        query = query.where(c.started_at >= datetime.fromtimestamp(meter.start, UTC))
        if meter.end:
            query = query.where(c.started_at < datetime.fromtimestamp(meter.end, UTC))
        await self._ledger.flush()  # What is settled already must be in the sum.
        async with self._ledger.database.session() as session:
            total = await session.scalar(query)
        return 0 if total is None else to_picodollars(total) if meter.is_money else int(total)

    async def conversations(self, subject: Subject, now: float) -> Sequence[str]:
        """The longest of today."""
        return await longest_today(self._ledger.database, await self._keys.keys_of(subject), subject, now)
