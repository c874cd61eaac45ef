"""What is said of the traffic from outside: within bounds, and each of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from wootz.core import BadRequestError
from wootz.telemetry import Ledger, RequestRecord
from wootz.telemetry.alerts import load_rules
from wootz.telemetry.alerts.resolved import _spent
from wootz.telemetry.signals import Signals

NOW = datetime(2026, 3, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize("kind", ["quality", "faithfulness", "resolved"])
@pytest.mark.parametrize("value", [-0.01, 1.01, 500, float("nan"), float("inf")])
async def test_a_share_is_from_0_to_1(database, kind, value):
    signals = Signals(database)
    with pytest.raises(BadRequestError, match="from 0 to 1"):
        await signals.note(kind, value, model="near")
    for bound in (0, 1):
        await signals.note(kind, bound, model="near")


async def test_a_conversation_is_resolved_by_who_had_it(database):
    """Two applications, and callers without accounts, count their conversations alike; one of them resolves few."""
    ledger, signals = Ledger(database), Signals(database, lambda: NOW - MINUTE)
    for n in range(10):
        for key, deployment in (("key-1", "older"), ("key-2", "newer"), (None, "local")):
            await ledger.write(
                RequestRecord(
                    request_id=f"{key}-{n}", started_at=NOW - MINUTE, route="/v1/chat/completions", key_id=key,
                    model="chat", provider="far.test", stream=False, status=200, deployment=deployment,
                    cost=Decimal(1), tags={"conversation": str(n)},
                )
            )  # fmt: skip
            if key != "key-2" or n < 2:
                await signals.note("resolved", subject=str(n), key_id=key)
    rule = load_rules()["resolution-cost"].model_copy(update={"least": 5})
    async with database.session() as session:
        spent = await _spent(session, NOW - rule.window, NOW)
    await ledger.close()
    assert {one: of.resolved for (_, one), of in spent.items()} == {"older": 10, "newer": 2, "local": 10}
