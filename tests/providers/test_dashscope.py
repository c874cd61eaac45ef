"""DashScope's native protocol over a real socket, both ways; the fake far end is checked by the official SDK."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import dashscope
import pytest
from fakes.dashscope import KEY, FakeDashScope, Says
from serving import HANG, Server

from wootz.core import (
    BadRequestError,
    Config,
    ModelConfig,
    PayloadTooLargeError,
    RateLimitError,
    UnsupportedError,
    UpstreamError,
    WootzError,
    collect_chat,
)
from wootz.core.media import MediaModel, MediaRequest, MediaTask, Pace, follow
from wootz.core.sections import ProviderConfig
from wootz.core.wire import ChatChunk, ChatRequest, EmbeddingRequest, RerankRequest
from wootz.providers import open_models
from wootz.providers.dashscope import DashScopeModel, open_dashscope
from wootz.providers.dashscope_catalogue import facts_of
from wootz.providers.dashscope_tasks import DashScopeMediaModel
from wootz.providers.endpoint import Endpoint

ASK = [{"role": "user", "content": "hi"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def far_end_server() -> Iterator[tuple[FakeDashScope, str]]:
    fake = FakeDashScope()
    with Server(fake.app) as server:
        yield fake, server.url


@pytest.fixture
def far_end(far_end_server: tuple[FakeDashScope, str]) -> FakeDashScope:
    fake = far_end_server[0]
    fake.says = Says()
    fake.requests.clear()
    fake.left.clear()
    return fake


@pytest.fixture
def url(far_end_server: tuple[FakeDashScope, str]) -> str:
    return f"{far_end_server[1]}/api/v1"


def model_of(url: str, upstream: str = "qwen-plus", **fields: Any) -> DashScopeModel:
    return DashScopeModel(Endpoint("ours", url, KEY, upstream_model=upstream, kind="dashscope", **fields))


@pytest.fixture
async def model(url: str, far_end: FakeDashScope) -> AsyncGenerator[DashScopeModel, None]:
    model = model_of(url)
    yield model
    await model.close()


def ask(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "ours", "messages": ASK, **fields})


async def chunks_of(model: DashScopeModel, **fields: Any) -> list[ChatChunk]:
    return [chunk async for chunk in model.chat(ask(**fields))]


# --- the fake is like the real one ------------------------------------------------------------------------------------


@pytest.mark.parametrize("incremental", [True, False])
def test_the_official_sdk_streams_from_the_fake(far_end: FakeDashScope, url: str, incremental: bool) -> None:
    far_end.says.pieces = [{"reasoning_content": "hm"}, {"content": "Hel"}, {"content": "lo"}]
    answers = dashscope.Generation.call(
        "qwen-plus", messages=ASK, api_key=KEY, base_address=url, result_format="message",
        stream=True, incremental_output=incremental, enable_thinking=True,
    )  # fmt: skip
    texts = [answer.output.choices[0].message.content for answer in answers]
    assert texts == (["", "Hel", "lo", ""] if incremental else ["", "Hel", "Hello", "Hello"])


def test_the_official_sdk_gets_whole_answers_and_errors_from_the_fake(far_end: FakeDashScope, url: str) -> None:
    options = {"api_key": KEY, "base_address": url}
    answer = dashscope.Generation.call("qwen-plus", prompt="hi", **options)
    assert (answer.output.text, answer.usage.output_tokens) == ("Hello", 5)
    picture = [{"role": "user", "content": [{"image": "https://x/y.png"}, {"text": "what?"}]}]
    answer = dashscope.MultiModalConversation.call("qwen-vl-max", messages=picture, **options)
    assert answer.output.choices[0].message.content == [{"text": "Hello"}]
    vectors = dashscope.TextEmbedding.call("text-embedding-v4", ["a", "bb"], dimension=2, **options)
    assert {one["text_index"]: one["embedding"][0] for one in vectors.output["embeddings"]} == {0: 1.0, 1: 2.0}
    ranking = dashscope.TextReRank.call("gte-rerank-v2", "q", ["a", "bbb"], return_documents=True, **options)
    assert [(one.index, one["document"]["text"]) for one in ranking.output.results] == [(1, "bbb"), (0, "a")]
    refused = dashscope.Generation.call("qwen-plus", prompt="hi", api_key="sk-no", base_address=url)
    assert (refused.status_code, refused.code) == (401, "InvalidApiKey")


# --- chat ----------------------------------------------------------------------------------------------------------


async def test_a_stream_comes_through_with_thinking_usage_and_sources(
    model: DashScopeModel, far_end: FakeDashScope
) -> None:
    far_end.says.pieces = [
        {"reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"content": "Hel"},
        {"content": "lo"},
    ]
    far_end.says.output = {"search_info": {"search_results": [{"title": "t", "index": 1}]}}
    far_end.says.usage |= {
        "prompt_tokens_details": {"cached_tokens": 8, "cache_creation_input_tokens": 2},
        "output_tokens_details": {"reasoning_tokens": 3},
    }
    chunks = await chunks_of(model, enable_thinking=True, thinking_budget=50, enable_search=True)
    assert [chunk.choices[0].delta.reasoning_content for chunk in chunks[:2]] == ["h", "m"]
    assert [chunk.choices[0].delta.content for chunk in chunks[2:4]] == ["Hel", "lo"]
    assert {chunk.model for chunk in chunks} == {"ours"}
    assert chunks[0].model_dump()["search_info"]["search_results"][0]["title"] == "t"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, None, "stop"]
    usage = chunks[-1].usage
    assert usage is not None
    assert chunks[-1].choices == []
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (11, 5, 8)
    details = usage.model_dump()
    assert details["prompt_tokens_details"]["cache_creation_input_tokens"] == 2
    assert details["completion_tokens_details"]["reasoning_tokens"] == 3
    parameters = far_end.body["parameters"]
    assert {"enable_thinking": True, "thinking_budget": 50, "enable_search": True}.items() <= parameters.items()


async def test_a_whole_answer_may_think_too_though_dashscope_wants_a_stream_for_it(
    model: DashScopeModel, far_end: FakeDashScope
) -> None:
    far_end.says.pieces = [{"reasoning_content": "hm"}, {"content": "yes"}]
    answer = await collect_chat(model.chat(ask(enable_thinking=True)))
    message = answer.choices[0].message
    assert (message.reasoning_content, message.content, answer.choices[0].finish_reason) == ("hm", "yes", "stop")


async def test_parameters_are_dashscopes(model: DashScopeModel, far_end: FakeDashScope) -> None:
    await chunks_of(
        model, temperature=0.5, top_p=0.9, top_k=-1, max_completion_tokens=9, max_tokens=8, seed=3, stop=["x"],
        presence_penalty=1.0, repetition_penalty=1.1, response_format={"type": "json_object"}, stream=True, user="u",
        stream_options={"include_usage": True}, result_format="text", vl_high_resolution_images=True,
    )  # fmt: skip
    assert far_end.body == {
        "model": "qwen-plus",
        "input": {"messages": ASK},
        "parameters": {
            "result_format": "message",
            "incremental_output": True,
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 9,
            "seed": 3,
            "stop": ["x"],
            "presence_penalty": 1.0,
            "repetition_penalty": 1.1,
            "response_format": {"type": "json_object"},
            "vl_high_resolution_images": True,
        },
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"frequency_penalty": 1.0}, "frequency_penalty"),
        ({"logit_bias": {"1": 2.0}}, "logit_bias"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"tools": [WEATHER], "tool_choice": "required"}, "tool_choice"),
        ({"stop": "x", "stop_token_ids": [1]}, "stop_token_ids"),
        ({"min_p": 0.1}, "min_p"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages[0].content[0].type"),
    ],
)
async def test_what_dashscope_lacks_is_refused(
    model: DashScopeModel, far_end: FakeDashScope, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        await chunks_of(model, **fields)
    assert refusal.value.param == param
    assert not far_end.requests


async def test_parallel_tool_calls_stream_and_their_results_go_back(
    model: DashScopeModel, far_end: FakeDashScope
) -> None:
    def part(index: int, arguments: str, **function: Any) -> dict[str, Any]:
        call_id = f"call_{index}" if function else ""
        return {"index": index, "id": call_id, "type": "function", "function": {"arguments": arguments, **function}}

    far_end.says.finish_reason = "tool_calls"
    far_end.says.pieces = [
        {"tool_calls": [part(0, "", name="weather")]},
        {"tool_calls": [part(0, '{"city": "Hangzhou"}')]},
        {"tool_calls": [part(1, '{"city":', name="weather")]},
        {"tool_calls": [part(1, ' "Damascus"}')]},
    ]
    answer = await collect_chat(model.chat(ask(tools=[WEATHER], parallel_tool_calls=True, tool_choice="auto")))
    assert answer.choices[0].finish_reason == "tool_calls"
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [
        ("call_0", '{"city": "Hangzhou"}'),
        ("call_1", '{"city": "Damascus"}'),
    ]
    assert far_end.body["parameters"]["tools"] == [WEATHER]

    results = [{"role": "tool", "tool_call_id": f"call_{index}", "content": "mild"} for index in (0, 1)]
    history = [*ASK, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    far_end.says = Says()
    assert (await collect_chat(model.chat(ask(messages=history, tools=[WEATHER])))).choices[
        0
    ].message.content == "Hello"
    assert far_end.body["input"]["messages"] == [
        *ASK,
        {"role": "assistant", "content": "", "tool_calls": calls},
        *results,
    ]


async def test_pictures_go_to_the_multimodal_service(url: str, far_end: FakeDashScope) -> None:
    model = model_of(url, "qwen3-omni-flash")
    parts = [
        {"type": "text", "text": "what?", "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}, "max_pixels": 99},
        {"type": "video_url", "video_url": {"url": "https://x/y.mp4"}, "fps": 2},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
    ]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    answer = await collect_chat(model.chat(ask(messages=messages)))
    await model.close()
    assert answer.choices[0].message.content == "Hello"
    assert far_end.requests[-1][0] == "aigc/multimodal-generation/generation"
    assert far_end.body["input"]["messages"] == [
        {"role": "system", "content": [{"text": "be brief"}]},
        {
            "role": "user",
            "content": [
                {"text": "what?", "cache_control": {"type": "ephemeral"}},
                {"image": "https://x/y.png", "max_pixels": 99},
                {"video": "https://x/y.mp4", "fps": 2},
                {"audio": "data:audio/mp3;base64,AAAA"},
            ],
        },
    ]


async def test_a_model_on_the_other_service_is_found_there_and_remembered(url: str, far_end: FakeDashScope) -> None:
    model = model_of(url, "brand-new-model")
    far_end.says.multimodal_only = ("brand-new-model",)
    for _ in range(2):
        assert (await collect_chat(model.chat(ask()))).choices[0].message.content == "Hello"
    await model.close()
    services = [path.split("/")[1] for path, _, _ in far_end.requests]
    assert services == ["text-generation", "multimodal-generation", "multimodal-generation"]


async def test_several_choices_end_each_on_its_own(model: DashScopeModel, far_end: FakeDashScope) -> None:
    far_end.says.pieces = [{"content": "a", "index": 0}, {"content": "b", "index": 1}, {"content": "B", "index": 1}]
    answer = await collect_chat(model.chat(ask(n=2)))
    assert [choice.message.content for choice in answer.choices] == ["a", "bB"]


# --- embeddings and ranking -----------------------------------------------------------------------------------------


async def test_more_texts_than_a_request_may_hold_are_split_and_stay_in_order(url: str, far_end: FakeDashScope) -> None:
    model = model_of(url, "text-embedding-v4")
    texts = ["x" * length for length in range(1, 24)]
    request = {"model": "ours", "input": texts, "dimensions": 64, "text_type": "query"}
    answer = await model.embed(EmbeddingRequest.model_validate(request))
    assert [(one.index, one.embedding[0]) for one in answer.data] == [(at, float(at + 1)) for at in range(23)]
    assert answer.usage.prompt_tokens == 46
    assert sorted(len(body["input"]["texts"]) for _, body, _ in far_end.requests) == [3, 10, 10]
    assert far_end.body["parameters"] == {"text_type": "query", "dimension": 64}
    encoded = await model.embed(EmbeddingRequest.model_validate(request | {"encoding_format": "base64"}))
    first = encoded.data[0].embedding
    assert isinstance(first, str)
    assert struct.unpack("<64f", base64.b64decode(first))[0] == 1.0
    with pytest.raises(BadRequestError, match="dimensions"):
        await model.embed(EmbeddingRequest(model="ours", input="a", dimensions=100))
    await model.close()


async def test_documents_are_ranked(url: str, far_end: FakeDashScope) -> None:
    model = model_of(url, "gte-rerank-v2")
    request = RerankRequest(model="ours", query="q", documents=["a", "bbb", "cc"], top_n=2, return_documents=True)
    answer = await model.rerank(request)
    assert [(one.index, one.document.text if one.document else None) for one in answer.results] == [
        (1, "bbb"),
        (2, "cc"),
    ]
    assert answer.usage.prompt_tokens == 9
    with pytest.raises(UnsupportedError, match="gte-rerank-v2 is for rerank"):
        await chunks_of(model)
    await model.close()


# --- bad hours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "kind", "code"),
    [
        ((400, "InvalidParameter", "temperature is too hot"), BadRequestError, "InvalidParameter"),
        (
            (400, "DataInspectionFailed", "Input data may contain inappropriate content."),
            BadRequestError,
            "content_filter",
        ),
        ((400, "Arrearage", "Access denied, please pay"), UpstreamError, "upstream_refused"),
        ((401, "InvalidApiKey", f"Invalid API-key provided: {KEY}"), UpstreamError, "upstream_refused"),
        ((403, "Forbidden.RAM", "no policy"), UpstreamError, "upstream_refused"),
        ((404, "ModelNotFound", "not here"), UpstreamError, "upstream_refused"),
        ((400, "InvalidParameter", "Model not exist."), UpstreamError, "upstream_refused"),
        ((413, "BadRequest.TooLarge", "too large"), PayloadTooLargeError, "request_too_large"),
        ((429, "Throttling.RateQuota", "Requests rate limit exceeded"), RateLimitError, "upstream_rate_limit"),
        ((500, "InternalError.Algo", "oh"), UpstreamError, "upstream_error"),
        ((503, "ServiceUnavailable", "later"), UpstreamError, "upstream_error"),
    ],
)
async def test_failures_by_their_code(
    url: str, far_end: FakeDashScope, failure: tuple[int, str, str], kind: type[WootzError], code: str
) -> None:
    model = model_of(url, region="us-east-1")
    far_end.says.failure = failure
    with pytest.raises(kind) as raised:
        await chunks_of(model)
    await model.close()
    assert raised.value.code == code
    assert KEY not in str(raised.value)
    assert "request r-1" in str(raised.value)  # What DashScope's support asks for.
    if "odel" in failure[1] or "not exist" in failure[2]:
        assert "in us-east-1" in str(raised.value)


async def test_a_failure_in_the_middle_ends_the_stream(model: DashScopeModel, far_end: FakeDashScope) -> None:
    far_end.says.late_failure = ("InternalError.Algo", "it broke")
    chunks = model.chat(ask())
    assert [(await anext(chunks)).choices[0].delta.content for _ in range(2)] == ["Hel", "lo"]
    with pytest.raises(UpstreamError, match="it broke"):
        await anext(chunks)


@pytest.mark.parametrize("pieces", [[{"content": "Hel"}, OSError()], [OSError()]])
async def test_a_cut_answer_is_never_taken_for_a_whole_one(
    model: DashScopeModel, far_end: FakeDashScope, pieces: list[Any]
) -> None:
    far_end.says.pieces = pieces
    with pytest.raises(UpstreamError) as cut:
        await chunks_of(model)
    assert cut.value.code == "upstream_cut_off"


async def test_who_goes_away_stops_the_work_there(model: DashScopeModel, far_end: FakeDashScope) -> None:
    far_end.says.pieces = [{"content": "Hel"}, HANG]
    chunks = model.chat(ask())
    await anext(chunks)
    await chunks.aclose()
    assert await asyncio.to_thread(far_end.left.wait, 20)


def test_the_table_knows_what_is_where() -> None:
    kinds = {
        "qwen-plus": "chat",
        "qwen3-omni-flash": "chat",
        "wan2.5-t2v-plus": "video",
        "wan2.2-kf2v-flash": "video",
        "wanx2.1-t2i-plus": "image",
        "qwen3-tts-flash": "speech",
        "cosyvoice-v3-flash": "speech",
        "paraformer-v2": "transcription",
        "text-embedding-v4": "embedding",
        "qwen3-vl-rerank": "rerank",
    }
    for name, kind in kinds.items():
        assert facts_of(name).kind == kind, name
    assert (facts_of("text-embedding-v1").batch, facts_of("text-embedding-v4").batch) == (25, 10)


# --- tasks -----------------------------------------------------------------------------------------------------------

PICTURES = {
    "task_status": "SUCCEEDED",
    "submit_time": "2026-11-28 12:00:00.000",
    "end_time": "2026-11-28 12:00:30.000",
    "results": [{"url": "https://store/1.png?Expires=1795000000&Signature=x"}, {"code": "DataInspectionFailed"}],
    "task_metrics": {"TOTAL": 2, "SUCCEEDED": 1, "FAILED": 1},
    "usage": {"image_count": 1},
}


def media_of(url: str, upstream: str) -> DashScopeMediaModel:
    model = open_dashscope(Endpoint("ours", url, KEY, upstream_model=upstream, kind="dashscope"))
    assert isinstance(model, DashScopeMediaModel)
    assert isinstance(model, MediaModel)
    return model


def make(**fields: Any) -> MediaRequest:
    return MediaRequest.model_validate({"model": "ours", "input": {"prompt": "a cat"}, **fields})


def test_the_official_sdk_makes_pictures_with_the_fake(
    far_end: FakeDashScope, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", url)
    far_end.says.task_states = [PICTURES]
    task = dashscope.ImageSynthesis.async_call("wanx2.1-t2i-turbo", prompt="a cat", n=2, api_key=KEY)
    assert task.output.task_status == "PENDING"
    done = dashscope.ImageSynthesis.fetch(task, api_key=KEY)
    assert done.output.results[0].url.startswith("https://store/1.png")
    assert done.usage.image_count == 1
    refused = dashscope.ImageSynthesis.cancel(task, api_key=KEY)
    assert (refused.status_code, refused.code) == (400, "UnsupportedOperation")


async def test_a_task_is_followed_to_its_end_with_pauses_that_grow(url: str, far_end: FakeDashScope) -> None:
    states = [{"task_status": "PENDING"}, *[{"task_status": "RUNNING"}] * 6, PICTURES]
    far_end.says.task_states = states
    model, pauses, seen = media_of(url, "wanx2.1-t2i-turbo"), [], []

    async def sleep(seconds: float) -> None:
        pauses.append(round(seconds, 2))

    async def changed(task: MediaTask) -> None:
        seen.append(task.status)

    task = await model.submit(make(parameters={"n": 2, "size": "1024*1024"}))
    assert (task.status, task.id, task.ended) == ("PENDING", f"task-{len(far_end.tasks) - 1}", False)
    assert far_end.requests[-1][0] == "aigc/text2image/image-synthesis"
    assert far_end.requests[-1][2]["x-dashscope-async"] == "enable"
    again = media_of(url, "wanx2.1-t2i-turbo")  # Another process, that knows no more than the id.
    done = await follow(again, task, sleep=sleep, changed=changed)
    assert pauses == [5, 7.5, 11.25, 16.88, 25.31, 30, 30, 30]
    assert seen == ["RUNNING", "SUCCEEDED"]
    assert (done.units, done.unit, done.urls[0][:19]) == (1, "image", "https://store/1.png")
    assert done.expires_at == datetime(2026, 11, 18, 11, 6, 40, tzinfo=UTC)
    await model.close()
    await again.close()


async def test_waiting_ends_at_its_limit_and_survives_a_bad_moment(url: str, far_end: FakeDashScope) -> None:
    model, pauses = media_of(url, "wan2.5-t2v-plus"), []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        failing = len(pauses) == 1
        far_end.says.poll_failure = (429, "Throttling.RateQuota", "slower") if failing else None

    task = await model.submit(make())
    with pytest.raises(UpstreamError, match="has not ended in 60 seconds") as late:
        await follow(model, task, Pace(limit=60), sleep=sleep)
    assert late.value.code == "task_timeout"
    assert sum(pauses) >= 60
    await model.close()


@pytest.mark.parametrize(
    ("upstream", "state", "units", "url_end"),
    [
        (
            "wan2.5-t2v-plus",
            {"video_url": "https://s/v.mp4", "usage": {"video_duration": 5, "video_count": 1}},
            "5",
            "v.mp4",
        ),
        ("wan2.6-image", {"choices": [{"message": {"content": [{"image": "https://s/i.png"}]}}]}, "1", "i.png"),
        (
            "paraformer-v2",
            {"results": [{"transcription_url": "https://s/t.json"}], "usage": {"duration": 9.5}},
            "9.5",
            "t.json",
        ),
    ],
)
async def test_each_kind_has_its_units_and_addresses(
    url: str, far_end: FakeDashScope, upstream: str, state: dict[str, Any], units: str, url_end: str
) -> None:
    far_end.says.task_states = [{"task_status": "SUCCEEDED", **state}]
    model = media_of(url, upstream)
    done = await model.fetch((await model.submit(make())).id)
    await model.close()
    assert done.units == Decimal(units)
    assert done.urls[0].endswith(url_end)
    assert done.expires_at is not None
    assert timedelta(hours=23) < done.expires_at - datetime.now(UTC) <= timedelta(hours=24)
    if upstream == "wan2.6-image":
        assert far_end.body["input"] == {"messages": [{"role": "user", "content": [{"text": "a cat"}]}]}


async def test_speech_is_made_while_one_waits_and_fetched_from_its_own_store_only(
    url: str, far_end: FakeDashScope
) -> None:
    model = media_of(url, "qwen3-tts-flash")
    task = await model.submit(make(input={"text": "hello", "voice": "Cherry"}))
    assert (task.status, task.units, task.unit) == ("SUCCEEDED", 5, "character")
    assert await model.download(task.urls[0]) == b"bytes of speech.wav"
    assert "authorization" not in far_end.downloads[-1]
    for elsewhere in ("http://169.254.169.254/latest", "file:///etc/passwd"):
        with pytest.raises(UpstreamError, match="not one of DashScope's"):
            await model.download(elsewhere)
    with pytest.raises(UnsupportedError, match="cannot chat"):
        model.chat(ask())
    await model.close()


async def test_tasks_are_cancelled_while_they_wait(url: str, far_end: FakeDashScope) -> None:
    far_end.says.task_states = [{"task_status": "PENDING"}]
    model = media_of(url, "wanx2.1-t2i-turbo")
    task = await model.submit(make())
    await model.cancel(task.id)
    assert (await model.fetch(task.id)).status == "CANCELED"
    with pytest.raises(BadRequestError):
        await model.cancel(task.id)
    assert (await model.fetch("nobody-knows")).status == "UNKNOWN"
    await model.close()


async def test_an_account_opens_models_of_both_kinds_in_its_region(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BAILIAN_KEY", KEY)
    account = ProviderConfig(kind="dashscope", region="ap-southeast-1", api_key="env:BAILIAN_KEY")
    names = {"chat": "qwen-plus", "pictures": "wanx2.1-t2i-turbo"}
    config = Config(
        home=tmp_path,
        providers={"bailian": account},
        models={name: ModelConfig(provider="bailian", upstream_model=upstream) for name, upstream in names.items()},
    )
    models = open_models(config, {})
    assert (type(models["chat"]), type(models["pictures"])) == (DashScopeModel, DashScopeMediaModel)
    assert {model.provider for model in models.values()} == {"dashscope-intl.aliyuncs.com"}
    for model in models.values():
        await model.close()


async def test_the_prompt_cache_is_told_where_the_system_prompt_ends(url: str, far_end: FakeDashScope) -> None:
    messages = [{"role": "system", "content": "A rule. " * 2000}, {"role": "user", "content": "hi"}]
    for prompt_cache in (True, False):
        model = model_of(url, prompt_cache=prompt_cache)
        await collect_chat(model.chat(ask(messages=messages)))
        system, user = far_end.body["input"]["messages"]
        assert ("cache_control" in str(system)) == prompt_cache
        assert "cache_control" not in str(user)
        if prompt_cache:
            assert system["content"] == [{"text": "A rule. " * 2000, "cache_control": {"type": "ephemeral"}}]
        await model.close()
