"""DashScope's native protocol over a real socket, both ways; the fake far end is checked by the official SDK."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import dashscope
import pytest
from fakes.dashscope import KEY, FakeDashScope, Says
from serving import HANG, Server

from wootz.core import (
    BadRequestError,
    PayloadTooLargeError,
    RateLimitError,
    UnsupportedError,
    UpstreamError,
    WootzError,
    collect_chat,
)
from wootz.core.wire import ChatChunk, ChatRequest, EmbeddingRequest, RerankRequest
from wootz.providers.dashscope import DashScopeModel
from wootz.providers.dashscope_catalogue import facts_of
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
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    await chunks_of(
        model, temperature=0.5, top_p=0.9, top_k=-1, max_completion_tokens=9, max_tokens=8, seed=3, stop=["x"],
        presence_penalty=1.0, repetition_penalty=1.1, response_format=schema, stream=True, user="u",
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
            "response_format": schema,
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
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages[0].content[0].type"),
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
    model = model_of(url, "qwen3-vl-plus")
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
    assert "DashScope request r-1" in str(raised.value)  # What DashScope's support asks for.
    if "odel" in failure[1] or "not exist" in failure[2]:
        assert "in the region us-east-1" in str(raised.value)


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
    assert far_end.left.wait(20)


def test_the_table_knows_what_is_where() -> None:
    kinds = {
        "qwen-plus": ("chat", True),
        "qwen3-omni-flash": ("chat", True),
        "wan2.5-t2v-plus": ("video", False),
        "wan2.2-kf2v-flash": ("video", False),
        "wanx2.1-t2i-plus": ("image", False),
        "qwen3-tts-flash": ("speech", False),
        "cosyvoice-v3-flash": ("speech", False),
        "paraformer-v2": ("transcription", False),
        "text-embedding-v4": ("embedding", True),
        "qwen3-vl-rerank": ("rerank", False),
    }
    for name, expected in kinds.items():
        facts = facts_of(name)
        assert (facts.kind, facts.compatible) == expected, name
    assert facts_of("text-embedding-v1").batch == 25
