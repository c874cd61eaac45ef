"""The exact cache over HTTP: what is given again, to whom, what it costs, and what never is."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest
from caches_on import ASK, CHAT, switch_on
from serving import GatewayServer, ScriptedModel

from wootz.core import UpstreamError
from wootz.core.wire import ChatRequest, CompletionRequest
from wootz.gateway.caches.keys import exact_key


def cache_of(answer: httpx.Response) -> str | None:
    assert answer.status_code == 200, answer.text
    return answer.headers.get("x-wootz-cache")


def test_the_second_answer_is_the_first_and_costs_nothing(
    server: GatewayServer, http: httpx.Client, model: ScriptedModel
) -> None:
    first, second = (http.post(CHAT, json=ASK) for _ in range(2))
    assert (cache_of(first), cache_of(second)) == ("miss", "exact")
    assert first.json() == second.json()
    assert "age" not in first.headers
    assert second.headers["age"] == "0"
    assert len(model.asked) == 1
    paid, free = (server.call(server.ledger.get(answer.headers["x-request-id"])) for answer in (first, second))
    assert paid.cost == Decimal("0.013")
    assert free.cost == 0
    assert (free.prompt_tokens, free.cached_tokens, free.completion_tokens) == (7, 2, 3), "tokens are told all the same"
    assert free.finish_reason == "stop"
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'wootz_cache_requests_total{cache="exact",model="scripted"}' in metrics


def test_a_hit_streams_the_same_chunks_whichever_way_the_first_was_asked(http: httpx.Client) -> None:
    stream = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
    first, second = (http.post(CHAT, json=stream) for _ in range(2))
    assert (cache_of(first), cache_of(second)) == ("miss", "exact")
    assert first.text == second.text
    assert first.text.count("data: ") == 3 + 1 + 1 + 1
    assert second.headers["content-type"].startswith("text/event-stream")
    whole = http.post(CHAT, json=ASK)
    assert cache_of(whole) == "exact"
    assert whole.json()["choices"][0]["message"]["content"] == "Hello, wörld"


def test_plain_completions_are_kept_too(http: httpx.Client) -> None:
    ask = {"model": "scripted", "prompt": "hi", "temperature": 0}
    first, second = (http.post("/v1/completions", json=ask) for _ in range(2))
    assert (cache_of(first), cache_of(second)) == ("miss", "exact")
    assert first.json() == second.json()


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0001},
        {"max_tokens": 5},
        {"seed": 1},
        {"stop": ["x"]},
        {"model": "other"},
        {"messages": [{"role": "system", "content": "v2"}, {"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "hi "}]},
        {"messages": [{"role": "user", "content": "hi", "name": "a"}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"metadata": {"prompt_version": "2"}},
        {"a_field_that_we_do_not_know": 1},
        {"stream": True, "stream_options": {"include_usage": False, "unknown": 1}},
    ],
)
def test_whatever_may_change_the_answer_is_another_question(http: httpx.Client, change: dict[str, Any]) -> None:
    assert cache_of(http.post(CHAT, json=ASK)) == "miss"
    assert cache_of(http.post(CHAT, json=ASK | change)) in ("miss", "bypass")


@pytest.mark.parametrize(
    "change", [{"user": "b"}, {"safety_identifier": "b"}, {"priority": 1}, {"stream": True}, {"temperature": 0.0}]
)
def test_how_it_is_delivered_is_not(http: httpx.Client, change: dict[str, Any]) -> None:
    assert cache_of(http.post(CHAT, json=ASK)) == "miss"
    assert cache_of(http.post(CHAT, json=ASK | change)) == "exact"


def test_the_order_of_fields_does_not_matter_and_the_order_of_messages_does() -> None:
    a = {
        "model": "m",
        "messages": [{"role": "user", "content": "1"}, {"role": "user", "content": "2"}],
        "x": {"a": 1, "b": 2},
    }
    b = {
        "x": {"b": 2, "a": 1},
        "messages": [{"content": "1", "role": "user"}, {"content": "2", "role": "user"}],
        "model": "m",
    }
    c = a | {"messages": a["messages"][::-1]}  # type: ignore[index]
    keys = [exact_key(["t"], "f", ChatRequest.model_validate(body)) for body in (a, b, c)]
    assert keys[0] == keys[1] != keys[2]
    # Two lists that join to one text, and a text that looks like the end of a field.
    assert exact_key(["a", "b"], "f", ChatRequest.model_validate(a)) != exact_key(
        ["ab", ""], "f", ChatRequest.model_validate(a)
    )
    forged = CompletionRequest(model="m", prompt='hi","temperature":0')
    assert exact_key([], "", forged) != exact_key([], "", CompletionRequest(model="m", prompt="hi", temperature=0))


def test_a_sampled_answer_is_only_kept_where_the_config_says_so(server: GatewayServer, http: httpx.Client) -> None:
    for sampled in ({"temperature": 0.7}, {"temperature": None}):
        assert cache_of(http.post(CHAT, json=ASK | sampled)) == "bypass"
    assert cache_of(http.post(CHAT, json=ASK | {"temperature": 1, "seed": 5})) == "miss"
    switch_on(server, {"exact": {"enabled": True, "sampled_models": ["scripted"]}})
    asked = [cache_of(http.post(CHAT, json=ASK | {"temperature": 0.7})) for _ in range(2)]
    assert asked == ["miss", "exact"]


@pytest.mark.parametrize(
    "more",
    [
        {"enable_search": True},
        {"web_search_options": {}, "plugins": ["web"]},
        {"tools": [{"type": "web_search"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
    ],
)
def test_what_depends_on_the_world_is_never_kept(http: httpx.Client, more: dict[str, Any]) -> None:
    assert [cache_of(http.post(CHAT, json=ASK | more)) for _ in range(2)] == ["bypass", "bypass"]


def test_a_picture_inside_the_request_is_part_of_it(http: httpx.Client) -> None:
    def ask(data: str) -> str | None:
        part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        return cache_of(http.post(CHAT, json=ASK | {"messages": [{"role": "user", "content": [part]}]}))

    assert [ask("AAAA"), ask("AAAA"), ask("BBBB")] == ["miss", "exact", "miss"]


def test_errors_and_empty_answers_are_never_kept(http: httpx.Client, model: ScriptedModel) -> None:
    model.script = [UpstreamError("down")]
    assert http.post(CHAT, json=ASK).status_code == 502
    model.script = ["half of it", UpstreamError("cut")]
    assert http.post(CHAT, json=ASK).status_code == 502
    model.script = []
    assert cache_of(http.post(CHAT, json=ASK)) == "miss"
    model.script = ["good"]
    assert [cache_of(http.post(CHAT, json=ASK)) for _ in range(2)] == ["miss", "exact"]


# --- per request ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["header", "body"])
def test_a_request_may_opt_out(http: httpx.Client, model: ScriptedModel, how: str) -> None:
    def ask(said: str = "") -> str | None:
        if how == "header":
            return cache_of(http.post(CHAT, json=ASK, headers={"cache-control": said}))
        return cache_of(http.post(CHAT, json=ASK | ({"cache": {said: True}} if said else {})))

    assert [ask("no-store"), ask()] == ["bypass", "miss"], "no-store leaves nothing"
    model.script = ["new"]
    assert [ask(), ask("no-cache"), ask()] == ["exact", "miss", "exact"]
    assert http.post(CHAT, json=ASK).json()["choices"][0]["message"]["content"] == "new", (
        "no-cache keeps the new answer"
    )
    assert ask("no-store") == "bypass"
    assert all("cache" not in request.model_dump() for request in model.asked), "no provider is told"


def test_an_answer_may_be_too_old_and_is_forgotten_in_time(server: GatewayServer, http: httpx.Client) -> None:
    now = 1000.0
    caches = switch_on(server, {"exact": {"enabled": True, "ttl_seconds": 100}})
    caches.store._clock = lambda: now  # type: ignore[attr-defined]
    assert cache_of(http.post(CHAT, json=ASK)) == "miss"
    now += 50
    old = http.post(CHAT, json=ASK)
    assert (cache_of(old), old.headers["age"]) == ("exact", "50")
    assert cache_of(http.post(CHAT, json=ASK, headers={"cache-control": "max-age=60"})) == "exact"
    assert cache_of(http.post(CHAT, json=ASK | {"cache": {"max-age": 20.0}})) == "miss"
    now += 100
    assert cache_of(http.post(CHAT, json=ASK | {"cache": {"ttl": 10.0}})) == "miss"
    now += 11
    assert cache_of(http.post(CHAT, json=ASK | {"cache": {"ttl": 1e9}})) == "miss", "the ttl of the one before"
    now += 101
    assert cache_of(http.post(CHAT, json=ASK)) == "miss", "no client makes the config's ttl longer"


def test_a_wrong_cache_field_is_refused(http: httpx.Client) -> None:
    for wrong in ({"no-cache": "yes"}, {"nocache": True}, {"ttl": -1.0}, True):
        assert http.post(CHAT, json=ASK | {"cache": wrong}).status_code == 400


# --- tenants ----------------------------------------------------------------------------------------------------------


def test_no_tenant_reads_what_another_one_wrote(
    http: httpx.Client, new_client: Callable[..., httpx.Client], model: ScriptedModel
) -> None:
    model.script = ["poison"]
    tricks: list[dict[str, Any]] = [
        {},
        {"tenant": "x"},
        {"_journey": {"tenant": ""}},
        {"journey": {"tenant": ""}},
        {"user": "victim"},
        {"cache": {"ttl": 1e9}},
        {"metadata": {"tenant": "victim"}},
    ]
    headers = {
        "cache-control": "public, max-age=99999, s-maxage=9",
        "x-wootz-tenant": "victim",
        "x-wootz-cache": "exact",
    }
    for trick in tricks:
        assert cache_of(http.post(CHAT, json=ASK | trick, headers=headers)) in ("miss", "exact")
    model.script = ["clean"]
    victim = new_client()
    for trick in tricks:
        answer = victim.post(CHAT, json=ASK | trick)
        assert answer.json()["choices"][0]["message"]["content"] == "clean"


def test_unknown_fields_cannot_smuggle_one_answer_under_another_question(
    http: httpx.Client, model: ScriptedModel
) -> None:
    """A provider might read ``Temperature`` or ``messages_`` and answer otherwise; that stays under its own key."""
    for field in ("Temperature", "messages ", "system", "prompt", "model_", "inputs", "temperature\u200b"):
        model.script = ["smuggled"]
        assert cache_of(http.post(CHAT, json=ASK | {field: "x"})) == "miss"
        model.script = ["clean"]
        answer = http.post(CHAT, json=ASK, headers={"cache-control": "max-age=0"} if field == "Temperature" else {})
        assert answer.json()["choices"][0]["message"]["content"] == "clean"
    twice = b'{"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "seed": 1, "seed": 2}'
    assert http.post(CHAT, content=twice, headers={"content-type": "application/json"}).status_code == 400


def test_a_team_shares_and_permissions_and_tags_are_part_of_the_key(server: GatewayServer, new_client: Any) -> None:
    server.call(server.keys.create_account("team", "one team"))
    a, b = new_client(team="one team"), new_client(team="one team")
    narrow, tagged = new_client(team="one team", models=["scripted"]), new_client(team="one team", tags={"app": "x"})
    said = [cache_of(client.post(CHAT, json=ASK)) for client in (a, b, narrow, narrow, tagged, new_client())]
    assert said == ["miss", "exact", "miss", "exact", "miss", "miss"]


# --- administrators ---------------------------------------------------------------------------------------------------


def test_an_administrator_sees_and_purges(http: httpx.Client, admin: httpx.Client, new_client: Any) -> None:
    other = new_client()
    http.post(CHAT, json=ASK)
    http.post(CHAT, json=ASK)
    other.post(CHAT, json=ASK)
    other.post(CHAT, json=ASK | {"model": "other"})
    state = admin.get("/admin/caches").json()
    assert state["requests"] == {"scripted": {"exact": 1, "miss": 2}, "other": {"miss": 1}}
    assert state["entries"] == 3
    assert state["bytes"] > 500
    assert admin.delete("/admin/caches", params={"model": "other"}).json() == {"purged": 1}
    tenant = other.get("/admin/caches")
    assert tenant.status_code == 403
    assert http.delete("/admin/caches").status_code == 403
    assert admin.delete("/admin/caches", params={"tenant": "nobody"}).json() == {"purged": 0}
    assert admin.delete("/admin/caches").json() == {"purged": 2}
    assert cache_of(http.post(CHAT, json=ASK)) == "miss"


def test_what_a_user_asked_is_forgotten_with_the_user(server: GatewayServer, admin: httpx.Client) -> None:
    """By their name, whether it is their account or what the client says; others' answers stay."""
    account = server.call(server.keys.create_account("user", "ada"))
    _, token = server.call(server.keys.create("of-ada", user="ada"))
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {token}"}, timeout=30) as ada:
        for client, body in ((ada, ASK), (admin, ASK | {"user": "ada"}), (admin, ASK | {"user": "bob", "seed": 5})):
            assert cache_of(client.post(CHAT, json=body)) == "miss"
        assert admin.delete("/admin/caches", params={"user": "ada"}).json() == {"purged": 2}
        assert cache_of(ada.post(CHAT, json=ASK)) == "miss"
    assert cache_of(admin.post(CHAT, json=ASK | {"seed": 5})) == "exact"
    assert admin.delete("/admin/caches", params={"user": "bob"}).json() == {"purged": 1}
    log = admin.get("/admin/audit", params={"action": "cache."}).json()["data"]
    assert [one["detail"]["user"] for one in log[:2]] == ["a user who is no account", account.id]


def test_switched_off_says_nothing(server: GatewayServer, http: httpx.Client) -> None:
    switch_on(server, {})
    assert "x-wootz-cache" not in http.post(CHAT, json=ASK).headers
