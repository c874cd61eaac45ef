"""Gemini: what we send is of its SDK's types, and what its fake answers the SDK reads as we do."""

from __future__ import annotations

import json
from array import array
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import gemini as fake
from fakes.far_end import SECRET, stream
from fastapi.responses import JSONResponse
from google import genai
from google.genai import types
from openai.types import chat as openai_types

from wootz.core import BadRequestError, RateLimitError, UnsupportedError, UpstreamError, collect_chat
from wootz.core.wire import ChatChunk, ChatCompletion, ChatRequest, EmbeddingRequest
from wootz.providers import Endpoint, GeminiModel

SCHEMA = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "get_time"}}
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def far_end() -> Iterator[fake.Gemini]:
    with fake.Gemini() as far_end:
        yield far_end


def model_at(far_end: fake.Gemini, upstream_model: str) -> GeminiModel:
    endpoint = Endpoint("ours", f"{far_end.url}/v1beta", SECRET, upstream_model=upstream_model, kind="gemini")
    return GeminiModel(endpoint)


async def chunks_of(
    far_end: fake.Gemini, *messages: dict[str, Any], upstream_model: str = "gemini-3.5-flash", **fields: Any
) -> list[ChatChunk]:
    far_end.asked.clear()
    model = model_at(far_end, upstream_model)
    request = ChatRequest.model_validate({"model": "ours", "messages": list(messages or (USER,)), **fields})
    try:
        return [chunk async for chunk in model.chat(request)]
    finally:
        await model.close()


async def ask(far_end: fake.Gemini, *messages: dict[str, Any], **fields: Any) -> ChatCompletion:
    chunks = await chunks_of(far_end, *messages, **fields)

    async def replay() -> Any:
        for chunk in chunks:
            yield chunk

    return await collect_chat(replay())


# --- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [fake.HELLO, fake.TOOLS, fake.THINKING], ids=["text", "tools", "thinking"])
async def test_the_sdk_reads_from_the_fake_what_we_read(far_end: fake.Gemini, events: list[Any]) -> None:
    far_end.answer = events
    client = genai.Client(api_key=SECRET, http_options=genai.types.HttpOptions(base_url=far_end.url))
    theirs = list(client.models.generate_content_stream(model="gemini-3.5-flash", contents="hi"))
    parts = [part for response in theirs for part in (response.candidates or [])[0].content.parts]  # pyright: ignore
    message = (await ask(far_end)).choices[0].message
    assert (message.content or "") == "".join(part.text or "" for part in parts if not part.thought)
    assert (message.reasoning_content or "") == "".join(part.text or "" for part in parts if part.thought)
    calls = [part.function_call for part in parts if part.function_call]
    ours = [call["function"] for call in message.tool_calls or []]
    assert [(call.name, call.args or {}) for call in calls] == [(f["name"], json.loads(f["arguments"])) for f in ours]


async def test_usage_counts_thoughts_and_what_was_cached(far_end: fake.Gemini) -> None:
    far_end.answer = fake.TOOLS
    usage = (await ask(far_end)).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (40, 27, 67)
    assert (usage.cached_tokens, usage.reasoning_tokens) == (32, 20)


async def test_a_stream_comes_as_it_comes(far_end: fake.Gemini) -> None:
    far_end.answer = fake.TOOLS
    chunks = await chunks_of(far_end)
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    roles = [choice.delta.role for chunk in chunks for choice in chunk.choices]
    assert roles == ["assistant", *[None] * (len(roles) - 1)]
    calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []]
    assert [call["index"] for call in calls] == [0, 1]
    assert calls[0]["extra_content"] == {"google": {"thought_signature": "c2lnbmF0dXJl"}}
    assert (calls[0]["id"], calls[1]["id"][:5]) == ("fc-1", "call-")
    assert chunks[-2].choices[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("STOP", "stop"), ("MAX_TOKENS", "length"), ("SAFETY", "content_filter"), ("RECITATION", "content_filter"),
     ("OTHER", "stop")],
)  # fmt: skip
async def test_finish_reasons(far_end: fake.Gemini, theirs: str, ours: str) -> None:
    far_end.answer = [fake.response({"text": "x"}, finish=theirs)]
    assert (await ask(far_end)).choices[0].finish_reason == ours


async def test_several_candidates(far_end: fake.Gemini) -> None:
    far_end.answer = [
        fake.response({"text": "a"}, index=0),
        fake.response({"text": "b"}, index=1, finish="STOP"),
        fake.response({"text": "c"}, index=0, finish="STOP"),
    ]
    answer = await ask(far_end, n=2)
    assert [choice.message.content for choice in answer.choices] == ["ac", "b"]
    assert far_end.asked[0]["generationConfig"] == {"candidateCount": 2}


async def test_a_blocked_prompt_is_an_answer_without_content(far_end: fake.Gemini) -> None:
    far_end.answer = fake.BLOCKED
    answer = await ask(far_end)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("content_filter", "")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5


@pytest.mark.parametrize(
    ("events", "code"),
    [
        (fake.HELLO[:1], "upstream_cut_off"),
        ([], "upstream_cut_off"),
        ([fake.response({"text": "x"}, finish="MALFORMED_FUNCTION_CALL")], "upstream_malformed"),
        ([{"candidates": "x"}], "upstream_malformed"),
        ([{"candidates": [{"content": {"parts": [{"functionCall": {}}]}}]}], "upstream_malformed"),
        ([fake.HELLO[0], {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}], "upstream_error"),
    ],
)
async def test_a_stream_that_goes_wrong(far_end: fake.Gemini, events: list[Any], code: str) -> None:
    far_end.answer = events
    with pytest.raises(UpstreamError) as failure:
        await chunks_of(far_end)
    assert failure.value.code == code


@pytest.mark.parametrize("data", ["{not json", "5", "null", "[]"])
async def test_events_that_are_no_objects(far_end: fake.Gemini, data: str) -> None:
    far_end.answer = stream([f"data: {data}\n\n"])
    with pytest.raises(UpstreamError) as failure:
        await chunks_of(far_end)
    assert failure.value.code == "upstream_malformed"


def refusal(code: int, status: str, message: str, *details: dict[str, Any]) -> JSONResponse:
    error = {"code": code, "message": message, "status": status, "details": list(details)}
    return JSONResponse([{"error": error}], code)


async def test_refusals(far_end: fake.Gemini) -> None:
    far_end.answer = refusal(400, "INVALID_ARGUMENT", "Invalid value at 'contents'")
    with pytest.raises(BadRequestError, match="Invalid value at 'contents'"):
        await ask(far_end)
    far_end.answer = refusal(400, "INVALID_ARGUMENT", f"API key not valid: {SECRET}", {"reason": "API_KEY_INVALID"})
    with pytest.raises(UpstreamError) as refused:
        await ask(far_end)
    assert (refused.value.code, SECRET in str(refused.value)) == ("upstream_refused", False)
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "21s"}
    far_end.answer = refusal(429, "RESOURCE_EXHAUSTED", "You exceeded your quota", retry)
    with pytest.raises(RateLimitError) as limited:
        await ask(far_end)
    assert limited.value.retry_after == 21


# --- requests ----------------------------------------------------------------------------------------------------


async def test_a_conversation_in_geminis_words(far_end: fake.Gemini) -> None:
    far_end.answer = fake.HELLO
    png, audio = "data:image/png;base64,iVBORw0KGgo=", {"data": "AAAA", "format": "wav"}
    await ask(
        far_end,
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "What?"},
                                     {"type": "image_url", "image_url": {"url": png}},
                                     {"type": "image_url", "image_url": {"url": "https://x.org/a.jpg?w=1"}},
                                     {"type": "input_audio", "input_audio": audio}]},
        tools=[WEATHER, TIME], tool_choice={"type": "function", "function": {"name": "get_time"}},
        temperature=0.5, top_p=0.9, top_k=5, seed=1, max_tokens=50, stop=["END"], presence_penalty=0.5,
        reasoning_effort="low", priority=3, user="ada", google={"cached_content": "cachedContents/1"},
    )  # fmt: skip
    assert far_end.asked == [
        {
            "systemInstruction": {"parts": [{"text": "Be short."}]},
            "contents": [
                {
                    "role": "user",
                    "parts": [
                        {"text": "What?"},
                        {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
                        {"fileData": {"fileUri": "https://x.org/a.jpg?w=1", "mimeType": "image/jpeg"}},
                        {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
                    ],
                }
            ],
            "tools": [
                {
                    "functionDeclarations": [
                        {"name": "get_weather", "description": "Weather.", "parametersJsonSchema": SCHEMA},
                        {"name": "get_time"},
                    ]
                }
            ],
            "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["get_time"]}},
            "generationConfig": {
                "temperature": 0.5,
                "topP": 0.9,
                "topK": 5,
                "seed": 1,
                "presencePenalty": 0.5,
                "maxOutputTokens": 50,
                "stopSequences": ["END"],
                "thinkingConfig": {"includeThoughts": True, "thinkingLevel": "LOW"},
            },
            "cachedContent": "cachedContents/1",
        }
    ]


async def test_an_answer_with_tools_goes_back_with_its_signature(far_end: fake.Gemini) -> None:
    """The second round of a conversation: the fake refuses it, as Gemini 3 does, without the signature."""
    far_end.answer = fake.TOOLS
    message = (await ask(far_end, tools=[WEATHER, TIME])).choices[0].message
    calls = message.tool_calls or []
    results = [{"role": "tool", "tool_call_id": calls[0]["id"], "content": '{"degrees": 20}'},
               {"role": "tool", "tool_call_id": calls[1]["id"], "content": "noon"}]  # fmt: skip
    far_end.answer = fake.HELLO
    answer = await ask(far_end, USER, message.model_dump(exclude_none=True), *results, tools=[WEATHER, TIME])
    assert answer.choices[0].message.content == "Hello!"
    time_id = calls[1]["id"]
    assert far_end.asked[0]["contents"][1:] == [
        {
            "role": "model",
            "parts": [
                {
                    "functionCall": {"id": "fc-1", "name": "get_weather", "args": {"location": "Paris"}},
                    "thoughtSignature": "c2lnbmF0dXJl",
                },
                {"functionCall": {"id": time_id, "name": "get_time", "args": {}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "fc-1", "name": "get_weather", "response": {"degrees": 20}}},
                {"functionResponse": {"id": time_id, "name": "get_time", "response": {"result": "noon"}}},
            ],
        },
    ]


async def test_a_signed_text_goes_back_signed(far_end: fake.Gemini) -> None:
    far_end.answer = fake.THINKING
    message = (await ask(far_end)).choices[0].message
    far_end.answer = fake.HELLO
    await ask(far_end, USER, message.model_dump(exclude_none=True), USER)
    assert far_end.asked[0]["contents"][1]["parts"] == [{"text": "12,231", "thoughtSignature": "c2lnMg=="}]


async def test_calls_of_another_providers_model_say_that_they_are_not_signed(far_end: fake.Gemini) -> None:
    far_end.answer = fake.HELLO
    call = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    history = [USER, {"role": "assistant", "content": None, "tool_calls": [call]},
               {"role": "tool", "tool_call_id": "call_1", "content": "noon"}]  # fmt: skip
    await ask(far_end, *history, tools=[TIME])
    assert far_end.asked[0]["contents"][1]["parts"][0]["thoughtSignature"] == "skip_thought_signature_validator"
    await ask(far_end, *history, tools=[TIME], upstream_model="gemini-2.5-flash")
    assert "thoughtSignature" not in far_end.asked[0]["contents"][1]["parts"][0]


@pytest.mark.parametrize(
    ("upstream_model", "fields", "thinking"),
    [
        ("gemini-2.5-flash", {"reasoning_effort": "medium"}, {"includeThoughts": True, "thinkingBudget": 8192}),
        ("gemini-2.5-flash", {"reasoning_effort": "none"}, {"thinkingBudget": 0}),
        ("gemini-2.5-pro", {"thinking_budget": 500}, {"includeThoughts": True, "thinkingBudget": 500}),
        ("gemini-3.5-flash", {"enable_thinking": True}, {"includeThoughts": True}),
        ("gemini-4-ultra", {"reasoning_effort": "high"}, {"includeThoughts": True, "thinkingLevel": "HIGH"}),
        ("gemini-3.5-flash", {"google": {"thinking_config": {"thinkingLevel": "LOW"}}}, {"thinkingLevel": "LOW"}),
    ],
)
async def test_thinking_in_each_models_way(
    far_end: fake.Gemini, upstream_model: str, fields: dict[str, Any], thinking: Any
) -> None:
    far_end.answer = fake.HELLO
    await ask(far_end, upstream_model=upstream_model, **fields)
    assert far_end.asked[0]["generationConfig"] == {"thinkingConfig": thinking}


@pytest.mark.parametrize(
    ("form", "config"),
    [
        ({"type": "json_object"}, {"responseMimeType": "application/json"}),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
         {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA}),
    ],
)  # fmt: skip
async def test_json(far_end: fake.Gemini, form: dict[str, Any], config: dict[str, Any]) -> None:
    far_end.answer = fake.HELLO
    await ask(far_end, response_format=form)
    assert far_end.asked[0]["generationConfig"] == config


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [fields]}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"guided_choice": ["a"]}, "guided_choice"),
        ({"thinking": {"type": "enabled"}}, "thinking"),
        ({"reasoning_effort": "none"}, "reasoning_effort"),
        ({"tools": [TIME], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"google": {"labels": {}}}, "google"),
        (part(type="hologram"), "messages[0].content[0].type"),
        ({"messages": [USER, {"role": "system", "content": "x"}]}, "messages[1].role"),
    ],
)
async def test_what_gemini_lacks_is_refused_by_name(far_end: fake.Gemini, fields: dict[str, Any], param: str) -> None:
    messages = fields.pop("messages", [USER])
    with pytest.raises(UnsupportedError) as refusal:
        await ask(far_end, *messages, **fields)
    assert (refusal.value.param, refusal.value.status) == (param, 400)
    assert far_end.asked == []


async def test_log_probabilities_both_ways(far_end: fake.Gemini) -> None:
    first, last = fake.response({"text": "Hé"}), fake.response({"text": "!"}, finish="STOP")
    first["candidates"][0]["logprobsResult"] = fake.likelihoods(("H", -0.25), ("é", -1.5), others=[("J", -2.0)])
    last["candidates"][0]["logprobsResult"] = fake.likelihoods(("!", 0.0))
    for event in (first, last):
        types.GenerateContentResponse.model_validate(event)
    far_end.answer = [first, last]
    answer = await ask(far_end, logprobs=True, top_logprobs=2)
    assert far_end.asked[0]["generationConfig"] == {"responseLogprobs": True, "logprobs": 2}
    (choice,) = answer.choices
    assert choice.logprobs is not None
    told = [one.model_dump() for one in choice.logprobs.content or ()]
    assert [(one["token"], one["logprob"], one["bytes"]) for one in told] == [
        ("H", -0.25, [72]), ("é", -1.5, [195, 169]), ("!", 0.0, [33]),
    ]  # fmt: skip
    assert [one["token"] for one in told[1]["top_logprobs"]] == ["é", "J"]
    assert openai_types.ChatCompletion.model_validate(answer.model_dump()).choices[0].logprobs is not None
    await ask(far_end, logprobs=True)
    assert far_end.asked[0]["generationConfig"] == {"responseLogprobs": True}
    await ask(far_end, logprobs=False)
    assert "generationConfig" not in far_end.asked[0]


async def test_openais_sdk_asks_for_base64_and_reads_its_vector(far_end: fake.Gemini) -> None:
    far_end.answer = JSONResponse({"embeddings": [{"values": [0.5, -1.0]}]})
    model = model_at(far_end, "gemini-embedding-001")
    wish = {"model": "ours", "input": "a", "encoding_format": "base64", "task_type": "RETRIEVAL_QUERY"}
    answer = await model.embed(EmbeddingRequest.model_validate(wish))
    packed = answer.data[0].embedding
    assert isinstance(packed, str)
    assert list(array("f", b64decode(packed))) == [0.5, -1.0]
    assert far_end.asked[-1]["requests"][0]["taskType"] == "RETRIEVAL_QUERY"
    with pytest.raises(UnsupportedError):
        await model.embed(EmbeddingRequest.model_validate({**wish, "instruction": "x"}))
    await model.close()


async def test_embeddings(far_end: fake.Gemini) -> None:
    far_end.asked.clear()
    far_end.answer = JSONResponse({"embeddings": [{"values": [0.5, -1.0]}, {"values": [1.0, 0.0]}]})
    model = model_at(far_end, "gemini-embedding-001")
    answer = await model.embed(EmbeddingRequest(model="ours", input=["a", "b"], dimensions=2))
    assert [one.embedding for one in answer.data] == [[0.5, -1.0], [1.0, 0.0]]
    assert far_end.asked[0]["requests"][1] == {
        "model": "models/gemini-embedding-001",
        "content": {"parts": [{"text": "b"}]},
        "outputDimensionality": 2,
    }
    far_end.answer = JSONResponse({"embeddings": 5})
    with pytest.raises(UpstreamError):
        await model.embed(EmbeddingRequest(model="ours", input="a"))
    with pytest.raises(UnsupportedError):
        await model.embed(EmbeddingRequest(model="ours", input=[1, 2]))
    await model.close()


async def test_tokens_are_counted_by_the_endpoint(far_end: fake.Gemini) -> None:
    model = model_at(far_end, "gemini-3.5-flash")
    far_end.answer = JSONResponse({"totalTokens": 31})
    messages = [{"role": "system", "content": "Be brief."}, USER]
    assert await model.count_tokens(ChatRequest.model_validate({"model": "ours", "messages": messages})) == 31
    assert far_end.paths[-1].endswith("/models/gemini-3.5-flash:countTokens")
    assert "Be brief." in str(far_end.asked[-1]["generateContentRequest"]["systemInstruction"])
    far_end.answer = JSONResponse({"tokens": 31})
    with pytest.raises(UpstreamError, match="not Gemini's protocol"):
        await model.count_tokens(ChatRequest.model_validate({"model": "ours", "messages": messages}))
    await model.close()
