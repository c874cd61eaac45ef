"""What the gateway does about incidents: a caller is left little, a failing deployment is not asked, for a while."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx
import pytest
from routing_house import Clock, Turns, question, route_over

from wootz.core.sections import MigrationsConfig
from wootz.gateway import KeyStore
from wootz.gateway.incident_actions import FailOver, LimitCaller, RollBack, hold, hold_deployments
from wootz.gateway.migration.controller import Controller
from wootz.gateway.migration.plan import Plan as MigrationPlan
from wootz.gateway.migration.store import MigrationStore
from wootz.telemetry.alerts import IncidentRow


def incident(subject: str = "a", culprit: dict | None = None, **fields) -> IncidentRow:
    row = {
        "id": f"inc-{subject}", "rule": "provider-errors", "subject": subject, "live": subject, "state": "open",
        "severity": "critical", "value": 1.0, "worst": 1.0, "detail": {"culprit": culprit} if culprit else {},
        "began_at": datetime.now(UTC), "action": "fail_over", "action_state": "due", "action_detail": {},
    }  # fmt: skip
    return IncidentRow(**row | fields)


async def test_a_key_gets_a_low_limit_and_gets_its_own_back(database):
    keys = KeyStore(database)
    key, _ = await keys.create("agent", requests_per_minute=100, tokens_per_day=5000)
    limit = LimitCaller(keys, 6)
    plan = await limit.plan(incident(culprit={"key_id": key.id, "share": 0.9}))
    assert plan.what == 'limit key "agent" to 6 requests a minute'
    for _ in range(2):  # Who died in between does it again.
        await limit.do(plan.steps)
        assert (await keys.get("agent")).limits.plain == {"requests_per_minute": 6, "tokens_per_day": 5000}
    for _ in range(2):
        await limit.undo(plan.steps)
        assert (await keys.get("agent")).limits.plain == {"requests_per_minute": 100, "tokens_per_day": 5000}


async def test_a_migration_goes_back_and_stays_back(database):
    store = MigrationStore(database)
    roll_back = RollBack(Controller(store))
    assert (await roll_back.plan(incident("new", rule="refusals"))).steps == {}
    migration = await store.start(alias="chat", new="new", plan=MigrationPlan.of(MigrationsConfig()), actor="ann")
    plan = await roll_back.plan(incident("new", rule="refusals"))
    assert plan.what == 'take "chat" back from "new" to "chat"'
    for _ in range(2):  # Who died in between does it again.
        await roll_back.do(plan.steps)
    await roll_back.undo(plan.steps)
    assert (await store.get(migration.id)).stage == "rolled-back"
    assert [(step.actor, step.why) for step in await store.steps(migration.id)][-1] == ("alerts", "alert refusals")


async def test_a_limit_that_somebody_changed_meanwhile_stays_theirs(database):
    keys = KeyStore(database)
    key, _ = await keys.create("agent")
    limit = LimitCaller(keys, 6)
    plan = await limit.plan(incident(culprit={"key_id": key.id, "share": 0.9}))
    await limit.do(plan.steps)
    await keys.update("agent", requests_per_minute=1)
    await limit.undo(plan.steps)
    assert (await keys.get("agent")).limits.requests_per_minute == 1


async def test_the_limit_is_the_users_where_the_key_belongs_to_one(database):
    keys = KeyStore(database)
    await keys.create_account("user", "ann")
    key, _ = await keys.create("laptop", user="ann")
    limit = LimitCaller(keys, 6)
    plan = await limit.plan(incident(culprit={"key_id": key.id, "user": key.user.id, "share": 0.9}))
    await limit.do(plan.steps)
    found = await keys.get("laptop")
    assert (found.user.limits.requests_per_minute, found.limits.requests_per_minute) == (6, None)


@pytest.mark.parametrize("user", [None, "ann"])
@pytest.mark.parametrize(
    "ends",
    [{"first": 3, "second": 3, "third": 100}, {"third": 6, "second": 6, "first": 100}],
    ids=["as they began", "the other way round"],
)
async def test_a_caller_with_several_incidents_is_limited_until_all_are_over(database, user, ends):
    keys = KeyStore(database)
    await keys.create_account("user", "ann", requests_per_minute=100)
    key, _ = await keys.create("agent", user=user, requests_per_minute=100)

    async def of_the_account() -> int | None:
        found = await keys.get("agent")
        return (found.user or found).limits.requests_per_minute

    steps = {}
    for name, after in (("first", 6), ("second", 6), ("third", 3)):  # The config has changed meanwhile.
        limit, fields = LimitCaller(keys, after), {"action": "limit_caller", "action_state": "done"}
        steps[name] = (await limit.plan(incident(name, {"key_id": key.id, "share": 0.9}))).steps
        await limit.do(steps[name])
        async with database.session() as session:
            session.add(incident(name, action_detail={"steps": dict(steps[name])}, **fields))
    for name, left in ends.items():
        async with database.session() as session:
            (await session.get_one(IncidentRow, f"inc-{name}")).live = None
        await LimitCaller(keys, 3).undo(steps[name])
        assert await of_the_account() == left


@pytest.mark.parametrize(
    ("culprit", "why"),
    [
        (None, "without accounts"),
        ({"share": 0.9}, "without accounts"),
        ({"share": 0.3, "key_id": "KEY"}, "not one caller's doing"),
        ({"share": 0.9, "key_id": "KEY", "user": "somebody"}, "limit it by hand"),
        ({"share": 0.9, "key_id": "SLOW"}, "leave key"),
    ],
)
async def test_nobody_is_limited_on_a_guess(database, culprit, why):
    keys = KeyStore(database)
    ids = {"KEY": (await keys.create("shared"))[0].id, "SLOW": (await keys.create("slow", requests_per_minute=2))[0].id}
    if culprit:
        culprit = culprit | {"key_id": ids.get(culprit.get("key_id"))}
    plan = await LimitCaller(keys, 6).plan(incident("somebody", culprit))
    assert why in plan.what
    assert not plan.steps


async def test_a_held_deployment_is_not_asked_and_the_last_one_always_is(database):
    clock = Clock()
    route = route_over(Turns("a"), Turns("b"), clock=clock, policy="cheapest")
    models = {"way": route}
    plan = await FailOver(models).plan(incident("a"))
    assert plan.what == 'ask "a" no more in way'
    async with database.session() as session:
        session.add(incident("a", action_state="done", action_detail={"steps": dict(plan.steps)}))
    await hold_deployments(database, models)
    for _ in range(10):
        assert (await answered_by(route)) == "b"
    assert "nobody" in (await FailOver(models).plan(incident("b"))).what
    hold([route], {"a", "b"})
    assert not any(deployment.held for deployment in route.deployments)
    hold([route], set())
    assert not any(deployment.held for deployment in route.deployments)


async def test_a_deployment_that_is_in_no_route_can_not_be_failed_over_from():
    plan = await FailOver({}).plan(incident("a"))
    assert (plan.what, plan.steps) == ('fail over from "a" to nobody: no route has it', {})


async def answered_by(route) -> str:
    request = question()
    _ = [chunk async for chunk in route.chat(request)]
    return request.journey.answered_by.deployment


def test_callers_tell_how_it_went_and_administrators_the_rest(http: httpx.Client, admin: httpx.Client):
    assert http.post("/v1/signals", json={"kind": "resolved", "subject": "c-1"}).status_code == 202
    refused = http.post("/v1/signals", json={"kind": "injection_attempt", "user": "ann"})
    assert refused.status_code == 403
    assert admin.post("/v1/signals", json={"kind": "injection_attempt", "user": "ann"}).status_code == 202
    assert admin.post("/v1/signals", json={"kind": "nonsense"}).status_code == 400
    for value in ("NaN", 500, -0.1):
        refused = admin.post("/v1/signals", json={"kind": "quality", "value": value})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "value")


def test_incidents_and_silences_are_for_administrators(http: httpx.Client, admin: httpx.Client):
    assert http.get("/admin/alerts").status_code == 403
    assert admin.get("/admin/alerts").json() == {"data": []}
    assert admin.get("/admin/alerts/inc-none").status_code == 404
    body = {"rule": "errors", "hours": 2, "why": "maintenance"}
    made = admin.post("/admin/silences", json=body).json()
    assert made["created_by"] == "root"
    assert [one["id"] for one in admin.get("/admin/silences").json()["data"]] == [made["id"]]
    assert admin.delete(f"/admin/silences/{made['id']}").status_code == 200
    assert admin.get("/admin/silences").json() == {"data": []}
    assert admin.post("/admin/silences", json={"hours": 2, "why": "all"}).status_code == 400
