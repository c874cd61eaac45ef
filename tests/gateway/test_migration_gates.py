"""The gates: their intervals against SciPy and by simulation, their verdicts on the ledger's rows, and what follows."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fresh_database import fresh_sqlite
from scipy.stats import binomtest

from wootz.core import BadRequestError
from wootz.core.sections import MigrationsConfig
from wootz.gateway.migration import Controller, Migration, MigrationStore, Plan
from wootz.gateway.migration.gates import Arm, Gate, judge
from wootz.gateway.migration.intervals import difference, log_mean, log_percentile, share
from wootz.gateway.migration.numbers import arms
from wootz.gateway.migration.plan import STAGES, decide
from wootz.store import Database
from wootz.store.audit import AuditLog
from wootz.telemetry import Ledger, RequestRecord
from wootz.telemetry.feedback import rate

MARGINS = MigrationsConfig().gates.model_dump()
PLAN = Plan.of(MigrationsConfig())


# --- intervals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "of"), [(0, 10), (3, 40), (199, 200), (40, 40)])
def test_a_share_has_wilsons_interval(number: int, of: int) -> None:
    theirs = binomtest(number, of).proportion_ci(0.95, method="wilson")
    ours = share(number, of, 1.959963984540054)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_difference_of_shares_is_newcombes() -> None:
    """His table II, method 10: 56/70 and 48/80, 9/10 and 3/10, 10/10 and 0/10."""
    for (a, m), (b, n), low, high in (
        ((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 10), 0.6075, 1.0),
    ):  # fmt: skip
        found = difference(share(a, m, 1.959964), share(b, n, 1.959964))
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("kind", ["percentile", "mean", "share"])
def test_intervals_of_a_difference_hold_the_truth_as_often_as_they_say(kind: str) -> None:
    """One-sided at z = 1.645: 95 of 100. 600 draws; four standard errors are 3.6 of 100."""
    random_ = random.Random(7)
    held = [0, 0]
    for _ in range(600):
        if kind == "share":
            pair = [share(sum(random_.random() < p for _ in range(300)), 300, 1.645) for p in (0.06, 0.03)]
            truth = 0.03
        else:
            shift = 0.3
            draws = [[math.exp(random_.gauss(m, 0.6)) for _ in range(300)] for m in (shift, 0.0)]
            pair = [log_percentile(d, 0.95, 1.645) if kind == "percentile" else log_mean(d, 1.645) for d in draws]
            truth = shift
        found = difference(*pair)
        held[0] += found.low <= truth
        held[1] += truth <= found.high
    assert all(number / 600 >= 0.914 for number in held), held


def test_too_few_values_know_nothing() -> None:
    assert log_percentile([1.0, 2.0], 0.95, 1.645).high == math.inf
    assert difference(log_mean([], 3), log_mean([1.0] * 50, 3)).low == -math.inf
    gates = judge(Arm(), Arm(), MARGINS, min_samples=10, min_ratings=0)
    assert {gate.verdict for gate in gates if gate.name != "satisfaction"} == {"wait"}


# --- verdicts -----------------------------------------------------------------------------------------------------


def arm(n: int, seed: int, **worse: float) -> Arm:
    """``n`` requests of a model; ``worse`` changes its usual rates and means."""
    draw = random.Random(seed)
    rates = {"errors": 0.005, "refusals": 0.02, "first_token": 1.0, "duration": 1.0, "cost": 1.0, "rating": 0.8} | worse
    made = Arm(requests=n)
    for _ in range(n):
        made.failures += draw.random() < rates["errors"]
        made.refusals += draw.random() < rates["refusals"]
        first = rates["first_token"] * math.exp(draw.gauss(-1.0, 0.5))
        made.first_token.append(first)
        made.duration.append(rates["duration"] * (first + math.exp(draw.gauss(0.5, 0.6))))
        made.cost.append(rates["cost"] * 0.002 * math.exp(draw.gauss(0, 0.8)))
        if draw.random() < 0.1:
            made.ratings.append(float(draw.random() < rates["rating"]))
    return made


def verdicts(old: Arm, new: Arm, **options: Any) -> dict[str, str]:
    options = {"min_samples": 200, "min_ratings": 0} | options
    return {gate.name: gate.verdict for gate in judge(old, new, MARGINS, **options)}


def test_a_model_that_is_as_good_passes_every_gate() -> None:
    assert set(verdicts(arm(4000, 1), arm(4000, 2)).values()) == {"pass"}


@pytest.mark.parametrize(
    ("gate", "worse"),
    [("errors", {"errors": 0.08}), ("refusals", {"refusals": 0.12}), ("first_token", {"first_token": 1.8}),
     ("duration", {"duration": 1.8}), ("cost", {"cost": 1.5}), ("satisfaction", {"rating": 0.4})],
)  # fmt: skip
def test_each_way_of_being_worse_fails_its_gate(gate: str, worse: dict[str, float]) -> None:
    found = verdicts(arm(4000, 1), arm(2000, 2, **worse))
    assert found[gate] == "fail"


def test_a_broken_model_is_found_out_by_a_handful_of_requests() -> None:
    assert verdicts(arm(500, 1), Arm(requests=8, failures=8))["errors"] == "fail"


def test_few_requests_neither_pass_nor_fail() -> None:
    assert verdicts(arm(4000, 1), arm(30, 2))["errors"] == "wait"


def test_a_price_that_is_known_to_be_higher_needs_no_statistics() -> None:
    free, paid = arm(300, 1, cost=0.0), arm(300, 2)
    assert verdicts(free, paid)["cost"] == "fail"
    assert verdicts(free, free)["cost"] == "pass"
    assert verdicts(paid, free)["cost"] == "pass"


def test_in_the_shadow_nobody_is_satisfied() -> None:
    assert "satisfaction" not in verdicts(arm(300, 1), arm(300, 2), shadow=True)


@pytest.mark.parametrize("migrations", [10, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_two_equal_models_are_hardly_ever_rolled_back(migrations: int) -> None:
    """17 looks at each, from the new one's first request to its 2,000th."""
    rolled_back = 0
    for seed in range(migrations):
        old, whole = arm(1500, 2 * seed), arm(2000, 2 * seed + 1)
        for looked in [*range(1, 20, 3), *range(200, 2001, 200)]:
            ratio = looked / 2000
            new = Arm(
                requests=looked,
                failures=round(whole.failures * ratio),
                refusals=round(whole.refusals * ratio),
                first_token=whole.first_token[:looked],
                duration=whole.duration[:looked],
                cost=whole.cost[:looked],
                ratings=whole.ratings[: looked // 10],
            )
            if "fail" in verdicts(old, new).values():
                rolled_back += 1
                break
    assert rolled_back <= migrations / 100


# --- steps --------------------------------------------------------------------------------------------------------


def gate(verdict: Any, name: str = "errors") -> Gate:
    return Gate(name=name, verdict=verdict, old=0.01, new=0.09, worse=0.08, margin=0.02, old_count=300, new_count=300)


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_what_is_done_when(stage: str) -> None:
    seconds = PLAN.durations[stage]
    assert decide(stage, 0, [gate("pass"), gate("fail")], PLAN).to == "rolled-back"  # type: ignore[union-attr]
    assert decide(stage, seconds - 1, [gate("pass")], PLAN) is None
    assert decide(stage, seconds, [gate("pass")], PLAN).to == STAGES[STAGES.index(stage) + 1]  # type: ignore[union-attr]
    assert (decide(stage, seconds, [gate("pass"), gate("wait")], PLAN) is None) == (stage != "warm")
    manual = replace(PLAN, automatic=False)
    assert decide(stage, seconds, [gate("pass")], manual) is None
    assert decide(stage, 0, [gate("fail")], manual).to == "rolled-back"  # type: ignore[union-attr]


# --- from the ledger's rows to a step -----------------------------------------------------------------------------


class House:
    def __init__(self, database: Database) -> None:
        self.now = datetime(2026, 3, 2, tzinfo=UTC)
        self.database, self.ledger = database, Ledger(database)
        self.controller = Controller(MigrationStore(database, lambda: self.now))
        self._number = 0

    async def requests(self, migration: Migration, kind: str, number: int, **fields: Any) -> list[str]:
        """Records as the gateway leaves them; ``kind`` is their arm."""
        records = []
        for at in range(number):
            self._number += 1
            draw = random.Random(self._number)
            tags = {"migration": migration.id, "migration_arm": kind}
            record = RequestRecord(
                request_id=f"r{self._number}", started_at=self.now + timedelta(seconds=at / 1000), route="/v1/x",
                key_id=None, provider="x", stream=False, status=200, tags=tags, cost=Decimal("0.001"),
                model=migration.new if kind == "shadow" else migration.alias,
                lane="shadow" if kind == "shadow" else "interactive",
                time_to_first_token=0.1 * math.exp(draw.gauss(0, 0.2)), duration=math.exp(draw.gauss(0, 0.2)),
            )  # fmt: skip
            records.append(msgspec.structs.replace(record, **fields))
        await asyncio.gather(*map(self.ledger.write, records))
        self.now += timedelta(seconds=10)
        return [record.request_id for record in records]

    async def state(self, migration: Migration) -> str:
        return (await self.controller.store.get(migration.id)).stage


@pytest.fixture
async def house(tmp_path: Path):
    database = Database(fresh_sqlite(tmp_path / "wootz.db"))
    yield House(database)
    await database.close()


async def test_a_good_model_goes_all_the_way_by_itself(house: House) -> None:
    store = house.controller.store
    migration = await store.start(alias="old", new="new", plan=PLAN, actor="ann")
    for stage in STAGES[:-2]:
        assert await house.state(migration) == stage
        if stage != "full":
            await house.requests(migration, "old", 400)
        await house.requests(migration, "shadow" if stage == "shadow" else "new", 400)
        assert await house.controller.tick() == []  # Its time is not over.
        house.now += timedelta(seconds=PLAN.durations[stage])
        assert len(await house.controller.tick()) == 1
    assert await house.state(migration) == "warm"
    house.now += timedelta(days=29)
    assert await house.controller.tick() == []
    house.now += timedelta(days=1)
    await house.controller.tick()
    assert await house.state(migration) == "decommissioned"
    told = await AuditLog(house.database).entries(subject=migration.id)
    assert [entry.detail["stage"] for entry in reversed(told)] == list(STAGES)
    assert [entry.actor for entry in reversed(told)] == ["ann"] + ["migration controller"] * 7


async def test_a_bad_model_goes_back_by_itself_from_wherever_it_is(house: House) -> None:
    for number, stage in enumerate(STAGES[:-1]):
        migration = await house.controller.store.start(alias=f"old{number}", new="new", plan=PLAN, actor="ann")
        while migration.stage != stage:
            await house.requests(migration, "old", 100)
            migration = await house.controller.advance(migration.id, actor="ann", force=True)
        if stage not in ("full", "warm"):
            await house.requests(migration, "old", 400)
        await house.requests(migration, "shadow" if stage == "shadow" else "new", 40)
        await house.requests(migration, "shadow" if stage == "shadow" else "fallback", 20, status=500)
        (moved,) = await house.controller.tick()
        assert (moved.id, moved.stage) == (migration.id, "rolled-back")
        (*_, last) = await house.controller.store.steps(migration.id)
        assert last.why.startswith("errors: 0 → 0.333")
        assert {gate.name: gate.verdict for gate in last.gates}["errors"] == "fail"


async def test_only_what_tells_of_the_model_is_counted(house: House) -> None:
    migration = await house.controller.store.start(alias="old", new="new", plan=PLAN, actor="ann")
    migration = await house.controller.advance(migration.id, actor="ann", force=True)
    await house.requests(migration, "new", 5)
    await house.requests(migration, "new", 1, status=499)
    await house.requests(migration, "new", 1, status=429, error_code="requests_per_minute")
    await house.requests(migration, "new", 1, status=429, error_code="upstream_rate_limit")
    await house.requests(migration, "new", 1, cache="exact")
    await house.requests(migration, "new", 1, lane="batch")
    await house.requests(migration, "new", 1, route="/v1/messages/count_tokens")
    await house.requests(migration, "new", 1, time_to_first_token=None)
    await house.requests(migration, "fallback", 1)
    await house.requests(migration, "new", 1, refused=True)
    await house.requests(replace(migration, id="another"), "new", 1)
    _, new = await arms(house.database, migration, [], house.now)
    assert (new.requests, new.failures, new.refusals, len(new.duration)) == (9, 3, 1, 7)


async def test_ratings_can_stop_a_migration(house: House) -> None:
    migration = await house.controller.store.start(alias="old", new="new", plan=PLAN, actor="ann")
    migration = await house.controller.advance(migration.id, actor="ann", force=True)
    for kind, rating in (("old", 0.9), ("new", 0.2)):
        for number, id in enumerate(await house.requests(migration, kind, 80)):
            await rate(house.database, id, rating + 0.1 * (number % 2), None, house.now)
    (moved,) = await house.controller.tick()
    (*_, last) = await house.controller.store.steps(moved.id)
    assert last.why.startswith("satisfaction: 0.95 → 0.25, 0.7 where 0.05 is allowed")


async def test_a_person_needs_force_where_gates_do_not_pass(house: House) -> None:
    migration = await house.controller.store.start(alias="old", new="new", plan=PLAN, actor="ann")
    with pytest.raises(BadRequestError, match="errors waits"):
        await house.controller.advance("old", actor="ann")
    assert (await house.controller.advance("old", actor="ann", force=True)).stage == "canary"
    assert (await house.controller.roll_back(migration.id, actor="bob", why="no")).stage == "rolled-back"
    with pytest.raises(BadRequestError, match="rolled-back already"):
        await house.controller.roll_back(migration.id, actor="bob", why="no")
