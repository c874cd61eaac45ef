"""The official dashscope SDK, its 1.x functions and its 2.0 client, must not notice that this is not DashScope."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import dashscope
import httpx
import pytest
from serving import GatewayServer, ScriptedModel

from wootz.core import LanguageModel, UpstreamError
from wootz.core.wire import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    RerankDocument,
    RerankRequest,
    RerankResponse,
    RerankResult,
    Usage,
)

ASK = [{"role": "user", "content": "hi"}]
TEXT = "/api/v1/services/aigc/text-generation/generation"


class Thinker(LanguageModel):
    """Thinks, then calls two tools (when it has some) or answers; embeds and ranks by length."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[Any] = []

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        self.asked.append(request)
        deltas = [Delta(role="assistant"), Delta(reasoning_content="h"), Delta(reasoning_content="m")]
        if request.tools:
            for index, city in enumerate(("Hangzhou", "Damascus")):
                call = {"index": index, "id": f"call_{index}", "type": "function"}
                deltas.append(Delta(tool_calls=[{**call, "function": {"name": "weather", "arguments": ""}}]))
                for part in ('{"city": ', f'"{city}"}}'):
                    deltas.append(Delta(tool_calls=[{"index": index, "function": {"arguments": part}}]))
        else:
            deltas += [Delta(content="Hel"), Delta(content="lo")]
        for number in range(request.n or 1):
            for delta in deltas:
                yield self._chunk([ChunkChoice(index=number, delta=delta)])
            yield self._chunk(
                [ChunkChoice(index=number, delta=Delta(), finish_reason="tool_calls" if request.tools else "stop")]
            )
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        details = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}
        yield self._chunk([], Usage.model_validate(usage | details))

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(id="chatcmpl-1", model=self.name, choices=choices, usage=usage)

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        self.asked.append(request)
        data = [Embedding(index=at, embedding=[float(len(str(text)))]) for at, text in enumerate(request.input)]
        return EmbeddingResponse(data=data, model=self.name, usage=Usage(prompt_tokens=5, total_tokens=5))

    async def rerank(self, request: RerankRequest) -> RerankResponse:
        self.asked.append(request)
        results = [RerankResult(index=1, relevance_score=0.9, document=RerankDocument(text=request.texts[1]))]
        return RerankResponse(id="r", model=self.name, results=results, usage=Usage(prompt_tokens=6, total_tokens=6))


@pytest.fixture
def thinker(server: GatewayServer) -> Iterator[Thinker]:
    thinker = server.gateway.models["thinker"] = Thinker("thinker")
    yield thinker
    del server.gateway.models["thinker"]


@pytest.fixture
def omni(server: GatewayServer) -> Iterator[None]:
    """The SDK cumulates a stream by itself, but not for a model called omni: there we have to."""
    server.gateway.models["omni"] = ScriptedModel("omni")
    yield
    del server.gateway.models["omni"]


@pytest.fixture
def sdk(server: GatewayServer) -> dict[str, Any]:
    return {"api_key": server.key, "base_address": f"{server.url}/api/v1"}


def test_sdk_gets_whole_answers_as_text_and_as_message(sdk: dict[str, Any], server: GatewayServer) -> None:
    answer = dashscope.Generation.call("scripted", prompt="hi", **sdk)
    assert (answer.output.text, answer.output.finish_reason) == ("Hello, wörld", "stop")
    answer = dashscope.Generation.call("scripted", messages=ASK, result_format="message", **sdk)
    assert answer.output.choices[0].message.content == "Hello, wörld"
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (7, 3, 10)
    assert answer.usage.prompt_tokens_details == {"cached_tokens": 2}
    record = server.call(server.ledger.get(answer.request_id))
    assert (record.route, record.prompt_tokens, record.status) == (TEXT, 7, 200)


@pytest.mark.parametrize("incremental", [True, False])
@pytest.mark.parametrize("name", ["scripted", "omni"])
@pytest.mark.usefixtures("omni")
def test_sdk_streams_what_is_new_or_all_so_far(sdk: dict[str, Any], incremental: bool, name: str) -> None:
    answers = [*dashscope.Generation.call(
        name, messages=ASK, result_format="message", stream=True, incremental_output=incremental, **sdk
    )]  # fmt: skip
    texts = [answer.output.choices[0].message.content for answer in answers]
    new, so_far = ["Hel", "lo, ", "wörld", ""], ["Hel", "Hello, ", "Hello, wörld", "Hello, wörld"]
    assert texts == (new if incremental else so_far)
    assert [answer.output.choices[0].finish_reason for answer in answers] == ["null", "null", "null", "stop"]
    assert answers[-1].usage.total_tokens == 10
    text = [*dashscope.Generation.call(name, prompt="hi", stream=True, incremental_output=incremental, **sdk)]
    assert [answer.output.text for answer in text] == (new if incremental else so_far)


def test_sdk_thinks_and_calls_tools_in_parallel(sdk: dict[str, Any], thinker: Thinker) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    ask = {"messages": ASK, "result_format": "message", "tools": tools, "enable_thinking": True, **sdk}
    whole = dashscope.Generation.call("thinker", thinking_budget=9, parallel_tool_calls=True, **ask)
    *_, last = dashscope.Generation.call("thinker", stream=True, incremental_output=False, **ask)
    for answer in (whole, last):
        choice = answer.output.choices[0]
        assert (choice.finish_reason, choice.message.reasoning_content) == ("tool_calls", "hm")
        assert [
            (call["id"], json.loads(call["function"]["arguments"])["city"]) for call in choice.message.tool_calls
        ] == [
            ("call_0", "Hangzhou"),
            ("call_1", "Damascus"),
        ]
        assert answer.usage.output_tokens_details == {"reasoning_tokens": 2}
    extra = thinker.asked[0].model_extra
    assert (extra["enable_thinking"], extra["thinking_budget"]) == (True, 9)

    results = [{"role": "tool", "tool_call_id": f"call_{at}", "content": "mild", "name": "weather"} for at in (0, 1)]
    history = [*ASK, whole.output.choices[0].message, *results]  # As a program written for DashScope goes on.
    answer = dashscope.Generation.call("thinker", messages=history, result_format="message", **sdk)
    assert answer.output.choices[0].message.content == "Hello"
    assert [message.role for message in thinker.asked[-1].messages] == ["user", "assistant", "tool", "tool"]
    orphan = dashscope.Generation.call("thinker", messages=[*ASK, *results], **sdk)
    assert (orphan.status_code, orphan.code) == (400, "InvalidParameter")
    assert "input.messages[1].tool_call_id" in orphan.message


def test_sdk_sends_media_and_gets_parts(sdk: dict[str, Any], thinker: Thinker) -> None:
    content = [{"image": "https://x/y.png", "max_pixels": 9}, {"video": ["https://x/1.png"]}, {"text": "what?"}]
    messages = [{"role": "user", "content": content}]
    answer = dashscope.MultiModalConversation.call("thinker", messages=messages, **sdk)
    assert answer.output.choices[0].message.content == [{"text": "Hello"}]
    asked = thinker.asked[0].messages[0].model_dump(exclude_unset=True)["content"]
    assert asked == [
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}, "max_pixels": 9},
        {"type": "video", "video": ["https://x/1.png"]},
        {"type": "text", "text": "what?"},
    ]
    stream = dashscope.MultiModalConversation.call(
        "thinker", messages=messages, stream=True, incremental_output=True, **sdk
    )
    told = [answer.output.choices[0].message.content for answer in stream]
    assert "".join(part["text"] for parts in told for part in parts) == "Hello"


def test_sdk_gets_several_choices(sdk: dict[str, Any], thinker: Thinker) -> None:
    answer = dashscope.Generation.call("thinker", messages=ASK, n=2, result_format="message", **sdk)
    assert [choice.message.content for choice in answer.output.choices] == ["Hello", "Hello"]


def test_sdk_embeds_and_ranks(sdk: dict[str, Any], thinker: Thinker) -> None:
    answer = dashscope.TextEmbedding.call("thinker", ["a", "bb"], dimension=64, text_type="query", **sdk)
    assert answer.output["embeddings"] == [{"text_index": 0, "embedding": [1.0]}, {"text_index": 1, "embedding": [2.0]}]
    assert answer.usage == {"total_tokens": 5}
    assert (thinker.asked[0].dimensions, thinker.asked[0].model_extra) == (64, {"text_type": "query"})
    ranking = dashscope.TextReRank.call("thinker", "q", ["a", "b"], top_n=1, return_documents=True, **sdk)
    assert [(one.index, one.relevance_score, one["document"]) for one in ranking.output.results] == [
        (1, 0.9, {"text": "b"})
    ]
    assert (thinker.asked[1].top_n, ranking.usage.total_tokens) == (1, 6)


def test_the_2_0_client_chats_streams_embeds_and_ranks(server: GatewayServer, thinker: Thinker) -> None:
    client = dashscope.Client(api_key=server.key, base_url=f"{server.url}/api/v1", protocol="native", max_retries=0)
    answer = client.chat.completions.create(model="thinker", messages=ASK)
    assert (answer.output_text, answer.choices[0].message.reasoning_content) == ("Hello", "hm")
    chunks = [*client.chat.completions.create(model="thinker", messages=ASK, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks if chunk.delta) == "Hello"
    vectors = client.embeddings.create(model="thinker", input=["a", "bb"])
    assert [one.embedding for one in vectors.embeddings] == [[1.0], [2.0]]


async def test_async_sdk(sdk: dict[str, Any], server: GatewayServer) -> None:
    ask = {"messages": ASK, "result_format": "message", **sdk}
    assert (await dashscope.AioGeneration.call("scripted", **ask)).output.choices[0].message.content == "Hello, wörld"
    stream = await dashscope.AioGeneration.call("scripted", stream=True, incremental_output=True, **ask)
    assert [one.output.choices[0].message.content async for one in stream] == ["Hel", "lo, ", "wörld", ""]
    await dashscope.close_shared_aio_session()


def test_sdk_knows_our_errors(sdk: dict[str, Any], server: GatewayServer) -> None:
    def outcome(**fields: Any) -> tuple[int, str]:
        answer = dashscope.Generation.call(**{"model": "scripted", "prompt": "hi", **sdk, **fields})
        assert answer.request_id
        return answer.status_code, answer.code

    assert outcome(api_key="sk-wootz-no") == (401, "InvalidApiKey")
    assert outcome(model="gone") == (404, "ModelNotFound")
    assert outcome(temperature=9) == (400, "InvalidParameter")
    assert outcome(tools=[{"type": "function", "function": {"name": "f"}}], result_format="text") == (
        400,
        "InvalidParameter",
    )
    assert outcome(prompt="x" * 70_000) == (413, "BadRequest.TooLarge")
    assert outcome(model="org/other", prompt="hi")[0] == 200
    poor = server.call(server.keys.create("poor", requests_per_minute=1))[1]
    assert outcome(api_key=poor)[0] == 200
    assert outcome(api_key=poor) == (429, "Throttling.RateQuota")


def test_a_failure_in_the_middle_is_an_error_event(sdk: dict[str, Any], model: ScriptedModel) -> None:
    model.script = ["Hel", UpstreamError("it broke")]
    first, last = dashscope.Generation.call("scripted", prompt="hi", stream=True, incremental_output=True, **sdk)
    assert first.output.text == "Hel"
    assert (last.status_code, last.code, last.message) == (502, "InternalError", "it broke")


def test_a_stream_is_dashscopes_on_the_wire(http: httpx.Client, model: ScriptedModel) -> None:
    model.script = ["Hi"]
    body = {"model": "scripted", "input": {"prompt": "hi"}, "parameters": {"incremental_output": True}}
    answer = http.post(TEXT, json=body, headers={"x-dashscope-sse": "enable"})
    request_id = answer.headers["x-request-id"]
    first, last = answer.text.strip().split("\n\n")
    assert first == (
        'id:1\nevent:result\n:HTTP_STATUS/200\ndata:{"output":{"text":"Hi","finish_reason":"null"},'
        f'"request_id":"{request_id}"}}'
    )
    assert last.startswith("id:2\nevent:result\n:HTTP_STATUS/200\n")
    assert json.loads(last.partition("data:")[2])["usage"]["total_tokens"] == 10
