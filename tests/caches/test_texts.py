"""Embeddings and rankings over HTTP: a batch asks only for what is not kept, each text keeps what is its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest
from caches_on import switch_on
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import GatewayServer

from wootz.core import Config, LanguageModel, PriceConfig
from wootz.core.wire import (
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    RerankRequest,
    RerankResponse,
    RerankResult,
    Usage,
)
from wootz.gateway.caches import Caches
from wootz.telemetry.price_book import PriceBook

EMBED, RERANK = "/v1/embeddings", "/v1/rerank"


def vector(model: str, text: Any) -> list[float]:
    digest = hashlib.sha256(f"{model} {text}".encode()).digest()
    return [byte / 255 for byte in digest[:4]]


class Encoder(LanguageModel):
    """Vectors and scores that are a function of the text, ten tokens each; remembers what it was asked."""

    def __init__(self, name: str = "encoder", provider: str = "wootz") -> None:
        self.name, self.provider, self.who = name, provider, name
        self.asked: list[Any] = []

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        self.asked.append(request.input)
        given = request.input
        texts: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
        data = [Embedding(index=place, embedding=vector(self.who, text)) for place, text in enumerate(texts)]
        return EmbeddingResponse(data=data, model=self.who, usage=Usage.count(10 * len(texts), 0))

    async def rerank(self, request: RerankRequest) -> RerankResponse:
        self.asked.append(request.texts)
        scored = [
            RerankResult(index=place, relevance_score=vector(request.query, text)[0])
            for place, text in enumerate(request.texts)
        ]
        scored.sort(key=lambda one: -one.relevance_score)
        usage = Usage.count(10 * len(scored), 0)
        return RerankResponse(id="r", model=self.who, results=scored[: request.top_n], usage=usage)


@pytest.fixture
def encoder(server: GatewayServer) -> Encoder:
    encoder = Encoder()
    switch_on(server, {"exact": {"enabled": True}}, encoder=encoder, far=Encoder("far", "far.example"))
    server.telemetry.prices = PriceBook({name: PriceConfig(input=Decimal(1000)) for name in ("encoder", "far")})
    return encoder


def embed(http: httpx.Client, given: Any, **more: Any) -> tuple[str, str | None, dict[str, Any]]:
    answer = http.post(EMBED, json={"model": "encoder", "input": given, **more})
    assert answer.status_code == 200, answer.text
    return answer.headers["x-wootz-cache"], answer.headers.get("x-wootz-cached-texts"), answer.json()


def test_a_batch_asks_only_for_what_is_missing_and_pays_only_for_that(
    server: GatewayServer, http: httpx.Client, encoder: Encoder
) -> None:
    assert embed(http, "a")[:2] == ("miss", "0/1")
    status, texts, answer = embed(http, ["b", "a", "c", "b"])
    assert (status, texts) == ("miss", "1/4")
    assert encoder.asked == ["a", ["b", "c"]]
    assert [one["embedding"] for one in answer["data"]] == [vector("encoder", text) for text in "bacb"]
    assert [one["index"] for one in answer["data"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 20
    hit = http.post(EMBED, json={"model": "encoder", "input": ["c", "a"]})
    assert (hit.headers["x-wootz-cache"], hit.headers["age"]) == ("exact", "0")
    assert len(encoder.asked) == 2
    record = server.call(server.ledger.get(hit.headers["x-request-id"]))
    assert (record.cost, record.cache, record.prompt_tokens) == (0, "exact", 0)
    partly = server.call(server.ledger.list(model="encoder"))[1]
    assert partly.cost == Decimal("0.02")
    assert 'wootz_cache_requests_total{cache="exact",model="encoder"}' in httpx.get(f"{server.url}/metrics").text
    assert server.gateway.caches.counts["encoder", "exact"] == 1


@pytest.mark.parametrize(
    "change",
    [{"dimensions": 2}, {"encoding_format": "base64"}, {"input_type": "query"}, {"input": ["a "]}, {"input": [7]}],
)
def test_whatever_may_change_a_vector_is_another_question(
    http: httpx.Client, encoder: Encoder, change: dict[str, Any]
) -> None:
    embed(http, ["a"])
    assert embed(http, **{"given": change.pop("input", ["a"]), **change})[0] == "miss"


def test_no_tenant_reads_anothers_and_a_request_may_opt_out(
    http: httpx.Client, encoder: Encoder, new_client: Callable[..., httpx.Client]
) -> None:
    embed(http, ["a"])
    assert embed(new_client(), ["a"])[0] == "miss"
    assert embed(http, ["a"], cache={"no-store": True})[:2] == ("bypass", None)
    assert embed(http, ["a"], cache={"no-cache": True})[0] == "miss"
    assert embed(http, ["a"])[0] == "exact"


def test_vectors_of_two_models_are_never_mixed(http: httpx.Client, encoder: Encoder) -> None:
    embed(http, ["a"])
    encoder.who = "the fallback"
    _, texts, answer = embed(http, ["a", "b"])
    assert texts == "0/2"
    assert [one["embedding"] for one in answer["data"]] == [vector("the fallback", text) for text in "ab"]
    assert answer["model"] == "the fallback"
    assert answer["usage"]["prompt_tokens"] == 30, "both calls were made"
    assert embed(http, ["a", "b"])[0] == "exact"


def test_a_users_vectors_are_forgotten_with_the_user(http: httpx.Client, admin: httpx.Client, encoder: Encoder) -> None:
    embed(http, ["a", "b"], user="ada")
    embed(http, ["c"], user="bob")
    assert admin.delete("/admin/caches", params={"user": "ada"}).json() == {"purged": 2}
    assert embed(http, ["a"])[0] == "miss"
    assert embed(http, ["c"])[0] == "exact"


def rank(http: httpx.Client, documents: list[Any], model: str = "encoder", **more: Any) -> tuple[str, dict[str, Any]]:
    answer = http.post(RERANK, json={"model": model, "query": "q", "documents": documents, **more})
    assert answer.status_code == 200, answer.text
    return answer.headers["x-wootz-cached-texts"], answer.json()


def test_our_own_scores_belong_to_a_document_and_remote_ones_to_the_list(
    server: GatewayServer, http: httpx.Client, encoder: Encoder
) -> None:
    assert rank(http, ["a", "b"], top_n=1)[0] == "0/2"
    texts, answer = rank(http, ["c", {"text": "a"}, "b"], return_documents=True)
    assert texts == "2/3"
    assert encoder.asked == [["a", "b"], ["c"]]
    expected = sorted("cab", key=lambda text: -vector("q", text)[0])
    assert [one["document"]["text"] for one in answer["results"]] == expected
    assert rank(http, ["a", "b"], "far")[0] == rank(http, ["a", "b", "c"], "far")[0].replace("3", "2") == "0/2"
    assert rank(http, ["a", "b", "c"], "far", top_n=2)[0] == "3/3"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6), max_size=12))
async def test_whatever_is_kept_the_answer_is_the_models_own(batches: list[list[str]]) -> None:
    encoder = Encoder()
    config = Config.model_validate({"caches": {"exact": {"enabled": True, "max_bytes": 2000}}})
    caches = Caches(config, {"encoder": encoder})
    for batch in batches:
        request = EmbeddingRequest(model="encoder", input=list(batch))
        answer = await caches.texts.embed(None, request, encoder.embed)
        plain = await Encoder().embed(EmbeddingRequest(model="encoder", input=list(batch)))
        assert [one.model_dump() for one in answer.data] == [one.model_dump() for one in plain.data]
        ranking = RerankRequest(model="encoder", query="q", documents=list(dict.fromkeys(batch)), top_n=2)
        kept = await caches.texts.rerank(None, ranking, encoder, encoder.rerank)
        assert kept.results == (await Encoder().rerank(ranking)).results
