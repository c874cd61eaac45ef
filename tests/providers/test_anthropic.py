"""Anthropic's Messages API: what we send is of its SDK's types, and what its fake answers the SDK reads as we do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic as sdk
import pytest
from fakes import anthropic as fake
from fakes.far_end import SECRET, stream
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from wootz.core import BadRequestError, RateLimitError, UnsupportedError, UpstreamError, collect_chat
from wootz.core.wire import ChatChunk, ChatCompletion, ChatRequest
from wootz.providers import AnthropicModel, Endpoint

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather somewhere.",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
PNG = "data:image/png;base64,iVBORw0KGgo="
EPHEMERAL = {"type": "ephemeral"}
USER = {"role": "user", "content": "hi"}


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.fixture(scope="module")
def far_end() -> Iterator[fake.Anthropic]:
    with fake.Anthropic() as far_end:
        yield far_end


def request_of(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "ours", "messages": list(messages or (USER,)), **fields})


async def chunks_of(
    far_end: fake.Anthropic, *messages: dict[str, Any], upstream_model: str = "claude-opus-4-8", **fields: Any
) -> list[ChatChunk]:
    far_end.asked.clear()
    endpoint = Endpoint("ours", f"{far_end.url}/v1", SECRET, upstream_model=upstream_model, kind="anthropic")
    model = AnthropicModel(endpoint)
    try:
        return [chunk async for chunk in model.chat(request_of(*messages, **fields))]
    finally:
        await model.close()


async def ask(far_end: fake.Anthropic, *messages: dict[str, Any], **fields: Any) -> ChatCompletion:
    chunks = await chunks_of(far_end, *messages, **fields)

    async def replay() -> Any:
        for chunk in chunks:
            yield chunk

    return await collect_chat(replay())


# --- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [fake.HELLO, fake.TOOLS, fake.THINKING], ids=["text", "tools", "thinking"])
async def test_the_sdk_reads_from_the_fake_what_we_read(far_end: fake.Anthropic, events: list[Any]) -> None:
    far_end.answer = events
    client = sdk.Anthropic(base_url=far_end.url, api_key=SECRET)
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    with client.messages.stream(model="claude-opus-4-8", max_tokens=100, messages=messages) as stream:
        theirs = stream.get_final_message()
    message = (await ask(far_end)).choices[0].message

    assert (message.content or "") == "".join(block.text for block in theirs.content if block.type == "text")
    thoughts = [block for block in theirs.content if block.type in ("thinking", "redacted_thinking")]
    assert (message.thinking_blocks or []) == [block.to_dict() for block in thoughts]
    assert (message.reasoning_content or "") == "".join(getattr(block, "thinking", "") for block in thoughts)
    uses = [(block.id, block.name, block.input) for block in theirs.content if block.type == "tool_use"]
    calls = message.tool_calls or []
    assert uses == [(c["id"], c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]


async def test_usage_counts_what_was_cached_written_and_thought(far_end: fake.Anthropic) -> None:
    far_end.answer = fake.THINKING
    usage = (await ask(far_end)).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (25 + 100 + 2000, 40, 2165)
    assert (usage.cached_tokens, usage.cache_write_tokens, usage.reasoning_tokens) == (2000, 100, 30)


async def test_a_stream_comes_as_it_comes(far_end: fake.Anthropic) -> None:
    far_end.answer = fake.TOOLS
    chunks = await chunks_of(far_end)
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", None]
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert {chunk.model for chunk in chunks} == {"ours"}
    fragments = [f for chunk in chunks[:-1] for f in chunk.choices[0].delta.tool_calls or []]
    assert [(f["index"], f["function"]["arguments"]) for f in fragments] == [
        (0, ""), (0, '{"location":'), (0, ' "San Francisco, CA"}'), (1, ""), (1, "{}"),
    ]  # fmt: skip
    assert chunks[-2].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"),
     ("refusal", "content_filter"), ("model_context_window_exceeded", "length"), ("something new", "stop")],
)  # fmt: skip
async def test_finish_reasons(far_end: fake.Anthropic, theirs: str, ours: str) -> None:
    far_end.answer = [*fake.start(), *fake.text(0, "x"), *fake.end(theirs)]
    assert (await ask(far_end)).choices[0].finish_reason == ours


@pytest.mark.parametrize(
    ("events", "code"),
    [
        (fake.HELLO[:-1], "upstream_cut_off"),
        (fake.HELLO[:3], "upstream_cut_off"),
        ([{"type": "message_start", "message": {}}], "upstream_malformed"),
        ([{"type": "content_block_delta", "index": 7, "delta": {}}], "upstream_malformed"),
        ([*fake.start(), {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}],
         "upstream_error"),
    ],
)  # fmt: skip
async def test_a_stream_that_goes_wrong(far_end: fake.Anthropic, events: list[Any], code: str) -> None:
    far_end.answer = events
    with pytest.raises(UpstreamError) as failure:
        await chunks_of(far_end)
    assert failure.value.code == code


@pytest.mark.parametrize("data", ["{not json", "5", "null", "[]"])
async def test_events_that_are_no_objects(far_end: fake.Anthropic, data: str) -> None:
    far_end.answer = stream([f"data: {data}\n\n"])
    with pytest.raises(UpstreamError) as failure:
        await chunks_of(far_end)
    assert failure.value.code == "upstream_malformed"


def refusal(status: int, type: str, message: str, **headers: str) -> JSONResponse:
    body = {"type": "error", "error": {"type": type, "message": message}, "request_id": "req_1"}
    return JSONResponse(body, status, headers)


async def test_refusals(far_end: fake.Anthropic) -> None:
    far_end.answer = refusal(400, "invalid_request_error", f"max_tokens: too large {SECRET}")
    with pytest.raises(BadRequestError, match=r"max_tokens: too large \*\*\*"):
        await ask(far_end)
    far_end.answer = refusal(401, "authentication_error", "invalid x-api-key")
    with pytest.raises(UpstreamError) as refused:
        await ask(far_end)
    assert refused.value.code == "upstream_refused"
    far_end.answer = refusal(429, "rate_limit_error", "slow", **{"retry-after": "7"})
    with pytest.raises(RateLimitError) as limited:
        await ask(far_end)
    assert limited.value.retry_after == 7
    far_end.answer = refusal(529, "overloaded_error", "Overloaded", **{"retry-after": "3"})
    with pytest.raises(UpstreamError) as overloaded:
        await ask(far_end)
    assert (overloaded.value.code, overloaded.value.retry_after) == ("upstream_error", 3)


# --- requests ----------------------------------------------------------------------------------------------------


async def test_a_conversation_in_anthropics_words(far_end: fake.Anthropic) -> None:
    far_end.answer = fake.HELLO
    await ask(
        far_end,
        {"role": "system", "content": "Be short."},
        {"role": "developer", "content": [{"type": "text", "text": "And kind.", "cache_control": EPHEMERAL}]},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image(PNG), image("https://x.org/a.jpg")]},
        {"role": "assistant", "content": "A cat."},
        {"role": "system", "content": "Now in French."},
        {"role": "user", "content": "And this?"},
        tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=False, max_completion_tokens=50,
        stop=["END"], user="ada", reasoning_effort="none", priority=3, n=1, presence_penalty=0, service_tier="auto",
    )  # fmt: skip
    assert far_end.asked == [
        {
            "model": "claude-opus-4-8",
            "max_tokens": 50,
            "stream": True,
            "service_tier": "auto",
            "system": [
                {"type": "text", "text": "Be short."},
                {"type": "text", "text": "And kind.", "cache_control": EPHEMERAL},
            ],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is it?"},
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
                        },
                        {"type": "image", "source": {"type": "url", "url": "https://x.org/a.jpg"}},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
                {"role": "system", "content": [{"type": "text", "text": "Now in French."}]},
                {"role": "user", "content": [{"type": "text", "text": "And this?"}]},
            ],
            "stop_sequences": ["END"],
            "metadata": {"user_id": "ada"},
            "tools": [
                {
                    "name": "get_weather",
                    "description": "The weather somewhere.",
                    "input_schema": WEATHER["function"]["parameters"],
                },
                {"name": "get_time", "input_schema": {"type": "object"}},
            ],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "thinking": {"type": "disabled"},
        }
    ]


async def test_an_answer_with_tools_and_thinking_goes_back_whole(far_end: fake.Anthropic) -> None:
    """The second round of a conversation: the fake refuses it, as Anthropic does, without its thinking or a result."""
    far_end.answer = [
        [*fake.start(), *fake.thinking(0, "sig+/=", "hm"),
         *fake.tool_use(1, "toolu_1", "get_weather", '{"location": "X"}'),
         *fake.tool_use(2, "toolu_2", "get_time"), *fake.end("tool_use")],
        fake.HELLO,
    ]  # fmt: skip
    fields: dict[str, Any] = {"tools": [WEATHER, TIME], "reasoning_effort": "high"}
    message = (await ask(far_end, **fields)).choices[0].message
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "mild"} for call in message.tool_calls or []]
    far_end.answer = fake.HELLO
    answer = await ask(far_end, USER, message.model_dump(exclude_none=True), *results, **fields)
    assert answer.choices[0].message.content == "Hello!"
    (body,) = far_end.asked
    assert body["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "sig+/="},
        {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"location": "X"}},
        {"type": "tool_use", "id": "toolu_2", "name": "get_time", "input": {}},
    ]
    assert [block["tool_use_id"] for block in body["messages"][2]["content"]] == ["toolu_1", "toolu_2"]
    assert (body["thinking"], body["output_config"]) == (
        {"type": "adaptive", "display": "summarized"},
        {"effort": "high"},
    )


def test_an_orphan_tool_result_never_gets_as_far() -> None:
    with pytest.raises(ValidationError, match=r"messages\[1\].tool_call_id.*answers no open call"):
        request_of(USER, {"role": "tool", "tool_call_id": "toolu_1", "content": "mild"})


async def test_calls_of_another_providers_model_keep_their_results(far_end: fake.Anthropic) -> None:
    far_end.answer = fake.HELLO
    call = {"id": "functions.get_time:0", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    await ask(
        far_end, USER, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "functions.get_time:0", "content": "noon"}, tools=[TIME],
    )  # fmt: skip
    assert far_end.asked[0]["messages"][2]["content"][0]["tool_use_id"] == "functions_get_time_0"


@pytest.mark.parametrize(
    ("upstream_model", "fields", "thinking", "effort"),
    [
        ("claude-haiku-4-5", {"reasoning_effort": "medium"}, {"type": "enabled", "budget_tokens": 4096}, None),
        ("claude-haiku-4-5", {"thinking_budget": 2000, "enable_thinking": True},
         {"type": "enabled", "budget_tokens": 2000}, None),
        ("claude-haiku-4-5", {"reasoning_effort": "high", "max_tokens": 3000},
         {"type": "enabled", "budget_tokens": 1976}, None),
        ("claude-sonnet-4-6", {"enable_thinking": True}, {"type": "adaptive", "display": "summarized"}, None),
        ("claude-sonnet-4-6", {"enable_thinking": True, "thinking_budget": 5000},
         {"type": "enabled", "budget_tokens": 5000}, None),
        ("claude-of-tomorrow", {"reasoning_effort": "minimal"}, {"type": "adaptive", "display": "summarized"}, "low"),
        ("claude-opus-4-8", {"thinking": {"type": "adaptive", "display": "omitted"}},
         {"type": "adaptive", "display": "omitted"}, None),
        ("claude-opus-4-8", {}, None, None),
    ],
)  # fmt: skip
async def test_thinking_in_each_models_way(
    far_end: fake.Anthropic, upstream_model: str, fields: dict[str, Any], thinking: Any, effort: str | None
) -> None:
    far_end.answer = fake.HELLO
    await ask(far_end, upstream_model=upstream_model, **fields)
    assert far_end.asked[0].get("thinking") == thinking
    assert (far_end.asked[0].get("output_config") or {}).get("effort") == effort


async def test_sampling_by_the_version_that_has_it(far_end: fake.Anthropic) -> None:
    far_end.answer = fake.HELLO
    await ask(far_end, upstream_model="claude-sonnet-4-6", temperature=0.2, top_p=0.9, top_k=5)
    assert far_end.headers["anthropic-version"] == "2023-06-01"
    assert [far_end.asked[0][name] for name in fake.SAMPLING] == [0.2, 0.9, 5]
    await ask(far_end, upstream_model="claude-sonnet-4-6", temperature=1, top_p=1, top_k=-1)
    assert far_end.headers["anthropic-version"] == "2026-10-21"


async def test_json_by_schema(far_end: fake.Anthropic) -> None:
    far_end.answer = fake.HELLO
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    await ask(far_end, response_format=form, reasoning_effort="low")
    assert far_end.asked[0]["output_config"] == {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [fields]}]}


AUDIO = {"data": "AAAA", "format": "wav"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"seed": 1}, "seed"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"enable_search": True}, "enable_search"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"temperature": 0.5}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"thinking_budget": 5000, "enable_thinking": True}, "thinking_budget"),
        (part(type="input_audio", input_audio=AUDIO), "messages[0].content[0]"),
        (part(type="image_url", image_url={"url": "data:image/tiff;base64,AA"}), "messages[0].content[0]"),
        (part(type="hologram"), "messages[0].content[0].type"),
    ],
)
async def test_what_anthropic_lacks_is_refused_by_name(
    far_end: fake.Anthropic, fields: dict[str, Any], param: str
) -> None:
    messages = fields.pop("messages", [USER])
    with pytest.raises(UnsupportedError) as refusal:
        await ask(far_end, *messages, **fields)
    assert (refusal.value.param, refusal.value.status) == (param, 400)
    assert far_end.asked == []


@pytest.mark.parametrize(
    ("upstream_model", "fields", "param"),
    [
        ("claude-haiku-4-5", {"temperature": 1.5}, "temperature"),
        ("claude-haiku-4-5", {"reasoning_effort": "low", "max_tokens": 500}, "max_tokens"),
        ("claude-opus-5-5", {"reasoning_effort": "none"}, "reasoning_effort"),
        ("claude-opus-5-5", {"tools": [TIME], "tool_choice": "required"}, "tool_choice"),
    ],
)
async def test_what_a_model_lacks_is_refused_by_name(
    far_end: fake.Anthropic, upstream_model: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        await ask(far_end, upstream_model=upstream_model, **fields)
    assert (refusal.value.param, far_end.asked) == (param, [])


async def test_late_instructions_of_a_model_that_takes_none(far_end: fake.Anthropic) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        await ask(far_end, USER, {"role": "system", "content": "x"}, upstream_model="claude-haiku-4-5")
    assert refusal.value.param == "messages[1].role"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "data:image/png,raw", "", 5])
async def test_an_image_that_is_nowhere(far_end: fake.Anthropic, url: Any) -> None:
    with pytest.raises(BadRequestError) as refusal:
        await ask(far_end, *part(type="image_url", image_url={"url": url})["messages"])
    assert (refusal.value.param, far_end.asked) == ("messages[0].content[0].image_url", [])
