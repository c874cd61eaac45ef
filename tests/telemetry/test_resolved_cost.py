"""What a resolved conversation costs, in exact decimals, on both databases, and as the alert rule sees it."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random

import pytest

from wootz.store import Database
from wootz.telemetry import Ledger, RequestRecord
from wootz.telemetry.alerts.resolved import _spent
from wootz.telemetry.signals import Signals

START = datetime(2026, 5, 1, tzinfo=UTC)
KEYS = {"key": "key_id", "model": "model", "deployment": "deployment"}


async def a_month(database: Database) -> tuple[list[RequestRecord], dict[tuple[str | None, str], float]]:
    """Requests with and without a conversation, by several keys; and how far each conversation was resolved."""
    random, ledger, signals = Random(7), Ledger(database), Signals(database)
    rows, ends = [], []
    for number in range(300):
        conversation = random.choice([None, *map(str, range(12))])
        rows.append(
            RequestRecord(
                request_id=f"r{number}", started_at=START + timedelta(hours=2 * number), route="/", status=200,
                key_id=random.choice(["k1", "k2", None]), model=random.choice(["m1", "m2"]), provider="p", stream=False,
                deployment=random.choice(["d1", "d2"]), cost=Decimal(random.randrange(10**15)) / 10**12,
                tags={} if conversation is None else {"conversation": conversation},
            )
        )  # fmt: skip
    for _ in range(60):
        end = {"key_id": random.choice(["k1", "k2", None]), "subject": str(random.randrange(14))}
        value, at = random.choice([0.0, 0.5, 1.0]), START + timedelta(hours=random.randrange(700))
        ends.append(end | {"kind": "resolved", "value": value, "at": at})
    await signals.note_all([*ends, {"kind": "quality", "value": 1.0, "subject": "1", "key_id": "k1", "at": START}])
    for row in rows:
        await ledger.write(row)
    await ledger.close()
    since = START + timedelta(days=5)
    resolved: dict[tuple[str | None, str], float] = {}
    for end in ends:
        if end["at"] >= since:
            one = (end["key_id"], end["subject"])
            resolved[one] = max(resolved.get(one, 0.0), end["value"])
    return [row for row in rows if row.started_at >= since], resolved


@pytest.mark.parametrize("by", [[], ["key"], ["model", "deployment"], ["tag:conversation", "key"], ["day"]])
async def test_a_report_says_what_a_resolved_conversation_costs(database: Database, by: list[str]) -> None:
    rows, resolved = await a_month(database)
    costs: dict[tuple, dict[tuple, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
    for row in rows:
        names = {**{name: getattr(row, field) for name, field in KEYS.items()}, "day": f"{row.started_at:%Y-%m-%d}"}
        group = tuple(row.tags.get("conversation") if name == "tag:conversation" else names[name] for name in by)
        if conversation := row.tags.get("conversation"):
            costs[group][row.key_id, conversation] += row.cost
    report = await Ledger(database).report(by, START + timedelta(days=5), conversations=True)
    assert len([line for line in report if line.conversations]) == len(costs)
    for line in report:
        of_it = costs[tuple(line.group.values())]
        assert line.conversations == len(of_it)
        assert line.conversations_cost == sum(of_it.values(), Decimal(0))
        ended = sum(resolved.get(one, 0.0) for one in of_it)
        assert line.resolved == ended
        expected = None if not ended else (line.conversations_cost / Decimal(str(ended))).quantize(Decimal("1e-12"))
        assert line.cost_per_resolved == expected
    assert any(line.cost_per_resolved for line in report)
    (of_key,) = await Ledger(database).report([], START + timedelta(days=5), key_id="k1", conversations=True)
    assert of_key.conversations == len({row.tags["conversation"] for row in rows if row.tags and row.key_id == "k1"})


async def test_the_alert_rule_and_the_report_say_the_same(database: Database) -> None:
    await a_month(database)
    since, until = START + timedelta(days=5), START + timedelta(days=20)
    report = await Ledger(database).report(["model", "deployment"], since, until, conversations=True)
    async with database.session() as session:
        spent = await _spent(session, since, until)
    assert len(spent) == len(report) == 4
    for line in report:
        of = spent[line.group["model"] or "", line.group["deployment"] or ""]
        assert (of.conversations, of.resolved) == (line.conversations, line.resolved)
        assert line.cost_per_resolved is not None
        assert of.value == pytest.approx(float(line.cost_per_resolved))
