"""What one conversation may use up: steps and money, over HTTP, whichever way it is named."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from priced_house import COST, ask, client_with
from serving import GatewayServer

from wootz.gateway.limits.memory import SWEEP_AT, MemoryCounters


def states(admin: httpx.Client, name: str) -> dict[str, dict[str, Any]]:
    data = admin.get("/admin/limits").json()["data"]
    return {one["limit"]: one for one in data if (one["subject"], one["name"]) == ("conversation", name)}


def test_steps_of_a_conversation_are_counted_and_the_next_one_is_free(
    priced: GatewayServer, admin: httpx.Client
) -> None:
    with client_with(priced, "agent", conversation_steps=2) as client:
        assert [ask(client, "run-1").status_code for _ in range(2)] == [200, 200]
        refused = ask(client, "run-1")
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "conversation_steps")
        assert error["message"].startswith('conversation "run-1" may use 2 requests a day')
        assert 0 < int(refused.headers["retry-after"]) <= 86400
        assert ask(client, metadata={"conversation_id": "run-1"}).status_code == 429, "the same one, named elsewhere"
        assert [ask(client, name).status_code for name in ("run-2", None, None, None)] == [200] * 4
    shown = states(admin, "run-1")["conversation_steps"]
    assert (shown["used"], shown["held"], shown["of"], shown["within"]) == ("2", "0", "2", 'key "agent"')
    assert states(admin, "run-2")["conversation_steps"]["used"] == "1"
    metrics = httpx.get(f"{priced.url}/metrics").text
    assert 'wootz_capped_conversations_total{limit="conversation_steps"} 2.0' in metrics


def test_its_money_too_also_after_a_restart_and_for_a_whole_team(priced: GatewayServer, admin: httpx.Client) -> None:
    admin.post("/admin/teams", json={"name": "agents", "conversation_usd": "0.08"})
    with client_with(priced, "one", team="agents") as one, client_with(priced, "two", team="agents") as two:
        assert ask(one, "shared").status_code == 200
        counters = priced.gateway.limits.counters
        assert isinstance(counters, MemoryCounters)
        counters._periods.clear()
        assert ask(two, "shared").status_code == 200
        refused = ask(one, "shared")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "conversation_budget")
        assert "0.08 USD a day" in refused.json()["error"]["message"]
        assert states(admin, "shared")["conversation_budget"]["used"] == str(2 * COST)
        (row,) = [r for r in priced.call(priced.ledger.report(["tag:conversation"])) if "shared" in r.group.values()]
        assert row.cost == 2 * COST


def test_a_response_that_goes_on_is_of_the_first_ones_conversation(priced: GatewayServer) -> None:
    with client_with(priced, "responder", conversation_steps=2) as client:
        first = client.post("/v1/responses", json={"model": "scripted", "input": "hi"})
        again = {"model": "scripted", "input": "go on", "previous_response_id": first.json()["id"]}
        second = client.post("/v1/responses", json=again)
        assert (first.status_code, second.status_code) == (200, 200)
        third = client.post("/v1/responses", json={**again, "previous_response_id": second.json()["id"]})
        assert (third.status_code, third.json()["error"]["code"]) == (429, "conversation_steps")
        assert client.post("/v1/responses", json={"model": "scripted", "input": "hi"}).status_code == 200
        record = priced.call(priced.ledger.get(second.headers["x-request-id"]))
        assert record.tags["conversation"] == first.json()["id"]


@pytest.mark.parametrize("name", ["", "x" * 129])
def test_a_name_that_is_none_is_refused(priced: GatewayServer, http: httpx.Client, name: str) -> None:
    refused = ask(http, name)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-wootz-conversation")
    refused = ask(http, metadata={"conversation_id": [name]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "metadata.conversation_id")


def test_another_keys_conversation_of_the_same_name_is_another_one(priced: GatewayServer) -> None:
    for name in ("left", "right"):
        with client_with(priced, name, conversation_steps=1) as client:
            assert [ask(client, "same").status_code for _ in range(2)] == [200, 429]


def test_conversations_that_nobody_goes_on_with_do_not_fill_the_memory(
    priced: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wootz.gateway.limits.memory.SWEEP_AT", 5)
    with client_with(priced, "many", conversation_steps=1) as client:
        assert {ask(client, f"run {number}").status_code for number in range(12)} == {200}
        counters = priced.gateway.limits.counters
        assert isinstance(counters, MemoryCounters)
        assert len(counters._periods) <= 5 < SWEEP_AT
        assert ask(client, "run 0").status_code == 429, "the ledger knows"
