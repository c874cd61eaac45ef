"""What is said of the traffic from outside: within bounds, and each of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random

import pytest

from wootz.core import BadRequestError
from wootz.telemetry import Ledger, RequestRecord
from wootz.telemetry.alerts import load_rules
from wootz.telemetry.alerts.evaluate import Baselines, Finding, evaluate
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


# --- grades -------------------------------------------------------------------------------------------------------


async def graded(database, *days: tuple[int, float, int], by: str = "judge", spread: float = 0.1) -> None:
    """Each so many days ago, a mean, and how many."""
    draw, rows = Random(3), []
    for ago, mean, number in days:
        for n in range(number):
            at = NOW - timedelta(days=ago) + n * MINUTE / 10
            score = float(n < mean * number) if spread == 0 else min(1.0, max(0.0, draw.gauss(mean, spread)))
            rows.append({"kind": "quality", "value": score, "model": "near", "subject": by, "at": at})
    await Signals(database).note_all(rows)


async def drifts(database) -> list[Finding]:
    async with database.session() as session:
        return await evaluate(session, load_rules()["quality-drift"], NOW, Baselines())


LONG_AGO = (20, 0.8, 1)


@pytest.mark.parametrize(
    ("days", "alarm"),
    [
        ([(1, 0.7, 100), (3, 0.8, 100), (9, 0.8, 100)], True),
        ([(1, 0.78, 100), (9, 0.8, 100)], False),  # 2.5 %, not 5
        ([(1, 0.7, 20), (9, 0.8, 100)], None),  # too few
        ([(1, 0.7, 100), (9, 0.8, 20)], None),
        ([(1, 0.9, 100), (9, 0.8, 100)], False),
        ([(1, 0.7, 100)], None),  # nothing before
    ],
)
async def test_a_model_that_got_worse_is_an_alarm_by_enough_grades(database, days, alarm):
    await graded(database, LONG_AGO, *days)
    found = await drifts(database)
    assert [one.is_firing for one in found] == ([] if alarm is None else [alarm])


async def test_chance_is_no_alarm(database):
    """6 % less among scores that are all 0 or 1: one standard error at 100 grades is 6 %."""
    await graded(database, LONG_AGO, (1, 0.75, 100), (9, 0.8, 100), spread=0)
    (found,) = await drifts(database)
    assert (found.is_firing, found.judged) == (False, pytest.approx(0.9375, abs=0.003))


async def test_a_grader_is_compared_with_itself(database):
    """A stern one after a mild one is no drift; nor does a mild one's praise hide what the stern one saw."""
    await graded(database, LONG_AGO, (1, 0.9, 50), (9, 0.9, 100), by="mild")
    await graded(database, (1, 0.6, 100), by="stern")
    assert [(one.subject, one.is_firing) for one in await drifts(database)] == [("near", False)]
    await graded(database, (9, 0.75, 100), by="stern")
    (found,) = await drifts(database)
    assert (found.subject, found.detail["grader"], found.is_firing) == ("near", "stern", True)
    assert found.detail["samples"] == 100
