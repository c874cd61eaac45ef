"""In which region a model is: every row of the table, on both of DashScope's surfaces, before anything is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from wootz.core import UnsupportedError, WootzError, collect_chat
from wootz.core.media import MediaRequest
from wootz.core.wire import ChatRequest, EmbeddingRequest, RerankRequest
from wootz.providers import Endpoint
from wootz.providers.opening import BASE_URLS, PROVIDERS
from wootz.providers.regions import Available, available, check_region, table

REGIONS = {"cn-beijing", "ap-southeast-1", "cn-hongkong", "us-east-1", "eu-central-1", "ap-northeast-1"}
SURFACES = {"dashscope": "api", "dashscope-compatible": "compatible-mode"}


def models_of(row: Available) -> list[str]:
    """One name for each pattern."""
    return [name.replace("*", "x").replace("[tir]", "i").replace("?", "2") for name in row.names]


NAMES = [(row, name) for row in table() for name in models_of(row)]


def at(name: str, region: str | None, kind: Any = "dashscope") -> Endpoint:
    """Nobody listens there."""
    return Endpoint("ours", f"http://127.0.0.1:1/{SURFACES[kind]}/v1", "k", name, kind=kind, region=region)


@pytest.mark.parametrize(("row", "name"), NAMES, ids=[name for _, name in NAMES])
def test_each_row_is_reached_and_refuses_what_is_elsewhere(row: Available, name: str) -> None:
    assert available(name) is row
    assert set(row.regions) < REGIONS
    assert row.source.startswith("https://")
    check_region(at(name, None))
    for region in row.regions:
        check_region(at(name, region))
    for region in REGIONS - set(row.regions):
        with pytest.raises(UnsupportedError, match=f"not offered in {region}, but in {row.regions[0]}.*read 2026-"):
            check_region(at(name, region))


def test_what_no_source_says_is_asked_for() -> None:
    for name in ("qwen-plus", "wan9-t2v", "wan2.2-i2v-flash", "qwen-image-3.0", "text-embedding-v9", "qwen4-rerank"):
        assert available(name) is None
        check_region(at(name, "us-east-1"))
    check_region(Endpoint("ours", "http://127.0.0.1:1", None, "text-embedding-v4", kind="openai", region="mars"))


def test_regions_are_those_that_have_an_address() -> None:
    assert {region for kind, region in BASE_URLS if region and kind == "dashscope"} < REGIONS


def embed(model: Any) -> Awaitable[object]:
    return model.embed(EmbeddingRequest(model="ours", input="hi"))


def rerank(model: Any) -> Awaitable[object]:
    return model.rerank(RerankRequest(model="ours", query="q", documents=["d"]))


def make(model: Any) -> Awaitable[object]:
    return model.submit(MediaRequest(model="ours", input={"prompt": "a cat"}))


async def speak(model: Any) -> object:
    spoken = {"text": "hi", "voice": "Cherry", "format": "pcm"}
    return [chunk async for chunk in model.speak(MediaRequest(model="ours", input=spoken, stream=True))]


@pytest.mark.parametrize(
    ("kind", "name", "ask"),
    [
        ("dashscope", "text-embedding-v4", embed),
        ("dashscope-compatible", "text-embedding-v4", embed),
        ("dashscope", "qwen3-rerank", rerank),
        ("dashscope-compatible", "qwen3-rerank", rerank),
        ("dashscope", "wanx2.1-t2i-turbo", make),
        ("dashscope", "wan2.7-t2v", make),
        ("dashscope", "cosyvoice-v2", make),
        ("dashscope", "paraformer-v2", make),
        ("dashscope", "cosyvoice-v2", speak),
    ],
)
async def test_whatever_is_asked_for_is_refused_before_it_is_sent(
    kind: str, name: str, ask: Callable[[Any], Awaitable[object]]
) -> None:
    for region, says in (("us-east-1", "not offered in us-east-1"), ("cn-beijing", None)):
        model = PROVIDERS[kind](at(name, region, kind))  # type: ignore[index]
        with pytest.raises(WootzError, match=says) as refused:
            await ask(model)
        assert isinstance(refused.value, UnsupportedError) == bool(says)  # In its own region, nobody was there.
        await model.close()


async def test_a_chat_model_is_asked_wherever_it_is_configured() -> None:
    model = PROVIDERS["dashscope"](at("qwen-plus", "eu-central-1"))
    asked = ChatRequest.model_validate({"model": "ours", "messages": [{"role": "user", "content": "hi"}]})
    with pytest.raises(WootzError) as failed:
        await collect_chat(model.chat(asked))
    assert not isinstance(failed.value, UnsupportedError)
    await model.close()
