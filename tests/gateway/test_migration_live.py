"""A migration as users meet it: who answers, what is copied, what is recorded, and that nobody notices a bad model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from routing_house import Turns
from serving import CHAT, HANG, GatewayServer, ScriptedModel, until

from wootz.core import BadRequestError, UnavailableError
from wootz.core.wire import ChatRequest
from wootz.gateway.migration import Migration, Plan
from wootz.gateway.migration.plan import STAGES
from wootz.telemetry import RequestRecord

PLAN = Plan(durations=dict.fromkeys(STAGES[:-1], 3600.0), margins={"errors": 0.02}, shadow_share=1.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GatewayServer]:
    def models() -> dict:
        names = {"old": ["I am old"], "new": ["I am new"], "newer": ["I am newer"]}
        return {name: Turns(name, script) for name, script in names.items()}

    with GatewayServer(tmp_path, models) as server:
        yield server


@pytest.fixture
def http(server: GatewayServer) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
        yield client


def started(server: GatewayServer, stage: str, new: str = "new", plan: Plan = PLAN) -> Migration:
    """A migration of "old" that stands at ``stage``, known to the process."""
    migrations = server.gateway.migrations
    state = server.call(migrations.store.start(alias="old", new=new, plan=plan, actor="test"))
    return at(server, state, stage)


def at(server: GatewayServer, state: Migration, stage: str) -> Migration:
    migrations = server.gateway.migrations
    while state.stage != stage:
        to = stage if stage == "rolled-back" else STAGES[STAGES.index(state.stage) + 1]
        moved = server.call(migrations.store.move(state, to, actor="test", why="test"))
        assert moved is not None
        state = moved
    server.call(migrations.reload())
    return state


def ask(http: httpx.Client, user: str | None = None, **fields: Any) -> httpx.Response:
    body = {"model": "old", "messages": [{"role": "user", "content": "hi"}], **fields}
    return http.post(CHAT, json=body | ({"user": user} if user else {}))


def text(answer: httpx.Response) -> str:
    return answer.json()["choices"][0]["message"]["content"]


def records(server: GatewayServer, lane: str, number: int = 1) -> list[RequestRecord]:
    async def enough() -> list[RequestRecord]:
        found = [record for record in await server.ledger.list(limit=1000) if record.lane == lane]
        return found if len(found) >= number else []

    return server.call(until(enough))


@pytest.mark.parametrize(
    ("stage", "share"),
    [
        ("canary", 0.01),
        ("ramp-25", 0.25),
        pytest.param("ramp-5", 0.05, marks=pytest.mark.slow),
        pytest.param("ramp-50", 0.5, marks=pytest.mark.slow),
    ],
)
def test_a_stable_share_of_the_users_gets_the_new_model(server: GatewayServer, stage: str, share: float) -> None:
    started(server, stage)
    migrations, old = server.gateway.migrations, server.gateway.models["old"]

    def chosen(user: int) -> bool:
        request = ChatRequest.model_validate({"model": "old", "messages": [{"role": "user", "content": "hi"}]})
        request.journey.caller = f"user {user}"
        return migrations.choose(request, old) is not old

    first = [chosen(user) for user in range(20_000)]
    assert abs(sum(first) / len(first) - share) < 4 * (share * (1 - share) / len(first)) ** 0.5
    assert first[:500] == [chosen(user) for user in range(500)]


def test_who_has_the_new_model_keeps_it_in_every_later_stage(server: GatewayServer) -> None:
    state = started(server, "canary")
    migrations, old = server.gateway.migrations, server.gateway.models["old"]
    before = set[int]()
    for stage in ("canary", "ramp-5", "ramp-25", "ramp-50", "full"):
        state = at(server, state, stage)
        now = set[int]()
        for user in range(3000):
            request = ChatRequest.model_validate({"model": "old", "messages": [{"role": "user", "content": "hi"}]})
            request.journey.caller = str(user)
            if migrations.choose(request, old) is not old:
                now.add(user)
        assert before < now
        before = now
    assert len(before) == 3000


def test_in_the_shadow_users_get_the_old_model_and_the_new_one_a_copy(
    server: GatewayServer, http: httpx.Client
) -> None:
    state = started(server, "shadow")
    answer = ask(http, user="ann", metadata={"feature": "search"}, temperature=0.5)
    assert text(answer) == "I am old"
    (copy,) = records(server, "shadow")
    assert (copy.model, copy.deployment, copy.route, copy.status) == ("new", "new", "shadow", 200)
    assert copy.request_id == f"{answer.headers['x-request-id']}.shadow"
    assert copy.tags == {"migration": state.id, "migration_arm": "shadow"}
    assert (copy.key_id, copy.user, copy.team_id) == (None, None, None)
    (asked,) = server.gateway.models["new"].asked  # type: ignore[attr-defined]
    assert (asked.temperature, asked.user, asked.model_extra) == (0.5, None, {})
    (mine,) = records(server, "interactive")
    assert (mine.tags["migration_arm"], mine.tags["feature"], mine.user) == ("old", "search", "ann")


@pytest.mark.parametrize("script", [[HANG], [UnavailableError("down")], [RuntimeError("a bug")], ["half", HANG]])
def test_whatever_a_shadow_does_no_user_notices(server: GatewayServer, http: httpx.Client, script: list) -> None:
    started(server, "shadow")
    server.gateway.models["new"] = Turns("new", script)
    for _ in range(12):
        assert text(ask(http)) == "I am old"
    shadows = server.gateway.migrations.shadows
    if HANG in script:
        assert shadows.dropped == 12 - server.config.migrations.shadow_concurrency
    else:
        assert all(copy.status >= 500 for copy in records(server, "shadow", 12 - shadows.dropped))


def test_a_shadow_costs_a_key_nothing(server: GatewayServer) -> None:
    """Nor does it take a place among the requests that it may have at once."""
    token = server.call(server.keys.create("tight", requests_per_minute=3, concurrent_requests=1))[1]
    started(server, "shadow")
    server.gateway.models["new"] = Turns("new", [HANG])
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {token}"}) as http:
        assert [ask(http).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_tools_that_the_provider_runs_are_not_run_twice(server: GatewayServer, http: httpx.Client) -> None:
    started(server, "shadow")
    assert ask(http, tools=[{"type": "mcp", "server_url": "https://x"}]).status_code == 200
    assert ask(http).status_code == 200
    assert len(records(server, "shadow")) == 1


@pytest.mark.parametrize(
    "script", [[UnavailableError("down")], [RuntimeError("a bug")], [BadRequestError("no such parameter")]]
)
def test_where_the_new_model_fails_the_old_one_answers_and_it_counts(
    server: GatewayServer, http: httpx.Client, script: list
) -> None:
    server.gateway.models["new"] = Turns("new", script)
    started(server, "full")
    answer = ask(http)
    assert (answer.status_code, text(answer)) == (200, "I am old")
    (record,) = records(server, "interactive")
    assert record.tags["migration_arm"] == "fallback"
    assert [attempt.deployment for attempt in record.timeline.attempts] == ["new", "old"]


def test_a_mistake_of_the_user_is_told_by_the_old_model(server: GatewayServer, http: httpx.Client) -> None:
    for name in ("old", "new"):
        server.gateway.models[name] = Turns(name, [BadRequestError(f"{name} says no")])
    started(server, "full")
    answer = ask(http)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "old says no")


def test_every_name_of_the_answer_is_the_new_one_at_last_and_the_next_migration_begins_there(
    server: GatewayServer, http: httpx.Client
) -> None:
    state = started(server, "decommissioned")
    assert text(ask(http)) == "I am new"
    second = started(server, "shadow", new="newer")
    assert (second.old, second.new) == ("new", "newer")
    assert text(ask(http)) == "I am new"
    at(server, second, "rolled-back")
    assert text(ask(http)) == "I am new"
    assert state.id != second.id


def test_rolled_back_everybody_has_the_old_model(server: GatewayServer, http: httpx.Client) -> None:
    state = started(server, "full")
    assert text(ask(http)) == "I am new"
    at(server, state, "rolled-back")
    assert text(ask(http)) == "I am old"


def test_a_replica_without_the_new_model_answers_with_the_old_one(server: GatewayServer, http: httpx.Client) -> None:
    started(server, "full", new="not here")
    assert text(ask(http)) == "I am old"
    server.gateway.models["not here"] = ScriptedModel("not here", ["here now"])
    server.call(server.gateway.migrations.reload())
    assert text(ask(http)) == "here now"


def test_refusals_are_recorded_for_both_models(server: GatewayServer, http: httpx.Client) -> None:
    server.gateway.models["old"] = Turns("old", ["I'm sor", "ry, but I can't help with that."])
    server.gateway.models["new"] = Turns("new", ["抱歉,我无法回答。"])
    started(server, "shadow")
    ask(http)
    assert records(server, "interactive")[0].refused
    assert records(server, "shadow")[0].refused


def test_replicas_follow_the_database(server: GatewayServer, http: httpx.Client, monkeypatch) -> None:
    monkeypatch.setattr("wootz.gateway.migration.live.RELOAD_SECONDS", 0.01)
    state = started(server, "shadow")
    following = asyncio.run_coroutine_threadsafe(server.gateway.migrations.follow(), server.loop)
    while state.stage != "full":
        moved = server.call(
            server.gateway.migrations.store.move(
                state, STAGES[STAGES.index(state.stage) + 1], actor="another replica", why=""
            )
        )
        assert moved
        state = moved
    deadline = time.monotonic() + 30
    while text(ask(http)) != "I am new":
        assert time.monotonic() < deadline
    following.cancel()
