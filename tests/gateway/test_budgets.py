"""Limits and budgets over HTTP: held before the answer, settled to what the ledger says, whatever way it ends."""

from __future__ import annotations

import json

import httpx
import pytest
from priced_house import COST, ask, client_with
from serving import ASK, CHAT, HANG, GatewayServer, ScriptedModel

from wootz.core import UpstreamError


def code(response: httpx.Response) -> str:
    return response.json()["error"]["code"]


def totals(server: GatewayServer, name: str) -> tuple[int, int]:
    """Used and held, of the key's budget."""
    key = server.call(server.keys.get(name))
    (period,) = [p for n, p in server.gateway.limits.counters._periods.items() if n.startswith(f"key:{key.id}:budget")]  # type: ignore[attr-defined]
    return period.total - period.held, period.held


def test_a_budget_is_spent_to_the_last_digit_and_then_refused(priced: GatewayServer) -> None:
    with client_with(priced, "spender", budget_usd="0.09", budget_period="daily") as client:
        # An answer may cost 0.039: about 9 tokens to read, 3 to write.
        assert [ask(client).status_code for _ in range(2)] == [200, 200]
        assert totals(priced, "spender") == (int(2 * COST * 10**12), 0)
        refused = ask(client)
        assert (refused.status_code, code(refused)) == (429, "budget_exceeded")
        assert 0 < int(refused.headers["retry-after"]) <= 86400
        assert "0.09 USD" in refused.json()["error"]["message"]
        (report,) = priced.call(priced.ledger.report(["key"]))[:1]
        assert report.cost == 2 * COST
        priced.wall += 86400
        assert ask(client).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_whatever_way_it_ends_the_counter_has_what_the_ledger_has(
    priced: GatewayServer, model: ScriptedModel, stream: bool
) -> None:
    name = f"unlucky-{stream}"
    with client_with(priced, name, budget_usd="1", budget_period="never", concurrent_requests=1) as client:
        for script in (["a", UpstreamError("cut")], [UpstreamError("no")], ["a", RuntimeError("bug")], ["a", "b"]):
            model.script = script
            ask(client, stream=stream)
        model.script = ["a", HANG]
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json={**ASK, "max_tokens": 3}, timeout=1, headers={"x-request-id": f"gone-{stream}"})
        priced.wait_for_record(f"gone-{stream}")
        key = priced.call(priced.keys.get(name))
        rows = priced.call(priced.ledger.list(key_id=key.id))
        assert len(rows) == 5
        assert totals(priced, name) == (int(sum(row.cost for row in rows) * 10**12), 0)
        model.script = ["a"]
        assert ask(client).status_code == 200, "the place of the one that hung is free again"


def test_parallel_requests_do_not_spend_the_same_dollar(priced: GatewayServer, model: ScriptedModel) -> None:
    model.script = ["a", HANG]
    with client_with(priced, "parallel", budget_usd="0.05", budget_period="never") as client:
        body, named = {**ASK, "max_tokens": 3, "stream": True}, {"x-request-id": "first"}
        with client.stream("POST", CHAT, json=body, headers=named) as first:
            assert first.status_code == 200
            refused = ask(client)
            assert (code(refused), refused.headers["retry-after"]) == ("budget_exceeded", "1")
        priced.wait_for_record("first")
        model.script = ["a"]
        assert ask(client).status_code == 200


def test_what_a_request_may_take_at_most_is_held(priced: GatewayServer) -> None:
    with client_with(priced, "small", tokens_per_minute=100) as client:
        refused = client.post(CHAT, json=ASK)
        assert (refused.status_code, code(refused)) == (400, "request_exceeds_limit")
        assert "max_tokens" in refused.json()["error"]["message"]
        answer = ask(client, max_tokens=80)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-tokens"] == "100"
        assert answer.headers["x-ratelimit-remaining-tokens"] == "11"
        assert ask(client, max_tokens=80).status_code == 200, "it was settled to the 10 tokens that were used"
        assert ask(client, max_tokens=80).status_code == 429


def test_tokens_a_day(priced: GatewayServer) -> None:
    with client_with(priced, "daily", tokens_per_day=25, time_zone="Asia/Shanghai", reset_hour=5) as client:
        assert [ask(client).status_code for _ in range(3)] == [200, 200, 429]
        assert code(ask(client)) == "tokens_per_day"


def test_limits_of_team_user_and_tag_hold_over_all_their_keys(priced: GatewayServer, admin: httpx.Client) -> None:
    for path, body in (
        ("/admin/teams", {"name": "research", "requests_per_minute": 3}),
        ("/admin/users", {"name": "ada", "requests_per_minute": 2}),
        ("/admin/tags", {"name": "feature=support", "requests_per_minute": 1}),
    ):
        assert admin.post(path, json=body).status_code == 201
    team = {"team": "research"}
    with (
        client_with(priced, "r1", **team, user="ada") as first,
        client_with(priced, "r2", **team, user="ada") as second,
        client_with(priced, "r3", **team, tags={"feature": "support"}) as third,
        client_with(priced, "r4", tags={"feature": "support"}) as fourth,
    ):
        assert [ask(first).status_code, ask(second).status_code] == [200, 200]
        assert 'user "ada"' in ask(first).json()["error"]["message"]
        assert ask(third).status_code == 200
        assert 'tag "feature=support"' in ask(fourth).json()["error"]["message"]
        assert 'team "research"' in ask(third).json()["error"]["message"]
        admin.put("/admin/tags/feature=support", json={})
        assert ask(fourth).status_code == 200


def test_a_restart_forgets_no_budget(priced: GatewayServer) -> None:
    with client_with(priced, "before", budget_usd="0.05", budget_period="monthly") as client:
        assert ask(client).status_code == 200
        counters = priced.gateway.limits.counters
        counters._periods.clear()  # type: ignore[attr-defined]
        assert code(ask(client)) == "budget_exceeded"


def test_a_request_knows_its_team_and_tags(priced: GatewayServer, model: ScriptedModel) -> None:
    priced.call(priced.keys.create_account("team", "tenants"))
    with client_with(priced, "tenant", team="tenants", tags={"feature": "chat"}) as client:
        ask(client)
    journey = model.asked[-1].journey
    assert journey.tenant.startswith("team-")
    assert journey.tags == {"feature": "chat"}
    assert "answer_headers" not in json.dumps(model.asked[-1].model_dump(mode="json"))
