"""Answers by meaning over HTTP: who gets them, what the guard stops, and what a false one leaves behind."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest
from caches_on import CHAT, Directions, switch_on
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import GatewayServer, ScriptedModel

from wootz.gateway.caches import Caches
from wootz.gateway.caches.guard import difference


def at(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


TABLE = {
    "How do I reset my password?": at(0),
    "How can I reset my password?": at(5),
    "How do I not reset my password?": at(1),
    "Where is Berlin?": at(90),
    "broken": [0.0, 0.0],
}
RESET, SAME, OPPOSITE, BERLIN, BROKEN = TABLE


@pytest.fixture
def caches(server: GatewayServer) -> Caches:
    config = {"semantic": {"models": ["scripted"], "embedder": "directions", "threshold": 0.95}}
    return switch_on(server, config, directions=Directions("directions", TABLE))


def ask(client: httpx.Client, question: str | list[Any], **more: Any) -> httpx.Response:
    body = {"model": "scripted", "messages": [{"role": "user", "content": question}], "temperature": 0.7}
    answer = client.post(CHAT, json=body | more)
    assert answer.status_code == 200, answer.text
    return answer


def cache_of(client: httpx.Client, question: str | list[Any], **more: Any) -> str | None:
    return ask(client, question, **more).headers.get("x-wootz-cache")


def test_another_wording_gets_the_answer_and_the_opposite_does_not(caches: Caches, http: httpx.Client) -> None:
    assert [cache_of(http, text) for text in (RESET, SAME, OPPOSITE, BERLIN)] == ["miss", "semantic", "miss", "miss"]
    assert caches.semantic is not None
    assert caches.semantic.refused == {"negation": 1}
    streamed = ask(http, SAME, stream=True)
    assert streamed.headers["x-wootz-cache"] == "semantic"
    assert streamed.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.6},
        {"max_tokens": 99},
        {"metadata": {"prompt_version": "2"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": SAME}]},
        {"messages": [{"role": "user", "content": BERLIN}, {"role": "assistant", "content": "x"},
                      {"role": "user", "content": SAME}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": SAME},
                      {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]},
        {"messages": [{"role": "user", "content": SAME + " " * 10 + "x" * 500}]},
        {"model": "other"},
        {"cache": {"no-store": True}},
        {"cache": {"no-cache": True}},
    ],
)  # fmt: skip
def test_everything_else_must_be_equal(caches: Caches, http: httpx.Client, more: dict[str, Any]) -> None:
    assert cache_of(http, RESET) == "miss"
    assert cache_of(http, SAME, **more) != "semantic"
    assert cache_of(http, SAME) == "semantic"


def test_no_tenant_gets_another_ones_answer(caches: Caches, http: httpx.Client, new_client: Any) -> None:
    assert cache_of(http, RESET) == "miss"
    assert cache_of(new_client(), SAME) == "miss"


def test_a_broken_embedder_is_a_miss(caches: Caches, http: httpx.Client) -> None:
    assert [cache_of(http, BROKEN) for _ in range(2)] == ["miss", "miss"]


def test_a_false_hit_is_forgotten_counted_and_only_its_tenants(
    caches: Caches, http: httpx.Client, admin: httpx.Client, new_client: Any, server: GatewayServer
) -> None:
    ask(http, RESET)
    hit = ask(http, SAME).headers["x-request-id"]
    report = {"request_id": hit}
    assert new_client().post("/v1/caches/false_hits", json=report).status_code == 404
    assert cache_of(http, SAME) == "semantic"
    assert http.post("/v1/caches/false_hits", json=report).json() == {"purged": 1}
    assert http.post("/v1/caches/false_hits", json=report).status_code == 404
    assert admin.get("/admin/caches").json()["false_hits"] == {"scripted": 1}
    assert cache_of(http, SAME) == "miss"


def test_entries_expire_give_way_and_are_purged(server: GatewayServer, http: httpx.Client, caches: Caches) -> None:
    semantic = caches.semantic
    assert semantic is not None
    now = 0.0
    semantic._clock = lambda: now
    ask(http, RESET)
    now = 3600
    assert cache_of(http, SAME) == "miss"
    assert semantic.num_entries == 1
    semantic.config = semantic.config.model_copy(update={"max_entries": 1})
    ask(http, BERLIN)
    assert cache_of(http, RESET) == "miss"
    assert server.call(caches.purge(model="other")) == 0
    assert server.call(caches.purge(model="scripted")) == 1
    assert semantic.num_entries == 0


def test_exact_comes_first(server: GatewayServer, http: httpx.Client) -> None:
    both = {
        "exact": {"enabled": True},
        "semantic": {"models": ["scripted"], "embedder": "directions", "threshold": 0.95},
    }
    switch_on(server, both, directions=Directions("directions", TABLE))
    assert [cache_of(http, text, temperature=0) for text in (RESET, RESET, SAME)] == ["miss", "exact", "semantic"]
    model = server.gateway.models["scripted"]
    assert isinstance(model, ScriptedModel)
    assert len(model.asked) == 1


@given(st.text(max_size=60))
@settings(max_examples=200)
def test_a_text_does_not_differ_from_itself(text: str) -> None:
    assert difference(text, text) is None


@given(st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=200)
def test_a_difference_is_one_from_both_sides(a: str, b: str) -> None:
    assert (difference(a, b) is None) == (difference(b, a) is None)
