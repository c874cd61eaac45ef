"""Endpoints that speak OpenAI's protocol with habits of their own, over real sockets, both ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakes import openai as fake
from fakes.far_end import SECRET

from wootz.core import UnsupportedError, collect_chat
from wootz.core.sections import ProviderKind
from wootz.core.wire import ChatCompletion, ChatRequest
from wootz.providers import Endpoint, OpenAICompatibleModel

TIME = {"type": "function", "function": {"name": "get_time"}}
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def far_end() -> Iterator[fake.OpenAI]:
    with fake.OpenAI() as far_end:
        yield far_end


async def ask(
    far_end: fake.OpenAI, kind: ProviderKind, *messages: dict[str, Any], upstream_model: str = "theirs", **fields: Any
) -> ChatCompletion:
    far_end.asked.clear()
    model = OpenAICompatibleModel(
        Endpoint("ours", f"{far_end.url}/{kind}/v1", SECRET, upstream_model=upstream_model, kind=kind)
    )
    request = ChatRequest.model_validate({"model": "ours", "messages": list(messages or (USER,)), **fields})
    try:
        return await collect_chat(model.chat(request))
    finally:
        await model.close()


@pytest.mark.parametrize(
    ("kind", "upstream_model", "events", "thought", "cached", "reasoned"),
    [
        ("openai", "gpt-5", fake.OPENAI_REASONED, None, 32, 6),
        ("dashscope-compatible", "qwen-plus", fake.DASHSCOPE_THOUGHT, "27 x 453", 32, 6),
        ("deepseek", "deepseek-v4-pro", fake.DEEPSEEK_THOUGHT, "27 x 453", 32, 6),
        ("ollama", "qwen3", fake.OLLAMA_THOUGHT, "27 x 453", 0, 0),
        ("vllm", "Qwen/Qwen3-8B", fake.VLLM_THOUGHT, "27 x 453", 32, 0),
    ],
)
async def test_thoughts_and_counts_in_everyones_words(
    far_end: fake.OpenAI,
    kind: ProviderKind,
    upstream_model: str,
    events: list[Any],
    thought: str | None,
    cached: int,
    reasoned: int,
) -> None:
    far_end.answer = events
    answer = await ask(far_end, kind, upstream_model=upstream_model)
    message = answer.choices[0].message
    assert message.content == ("Hello!" if thought is None else "12,231")
    assert (message.reasoning_content or None) == thought
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (40, 10)
    assert (answer.usage.cached_tokens, answer.usage.reasoning_tokens) == (cached, reasoned)


@pytest.mark.parametrize("kind", ["openai", "dashscope-compatible", "deepseek", "vllm", "wootz"])
async def test_parallel_tools(far_end: fake.OpenAI, kind: ProviderKind) -> None:
    far_end.answer = fake.PARALLEL_TOOLS
    message = (await ask(far_end, kind)).choices[0].message
    calls = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in message.tool_calls or []]
    assert calls == [("call_1", "get_weather", '{"location": "Paris"}'), ("call_2", "get_time", "{}")]
    assert message.content is None
    far_end.answer = fake.HELLO
    results = [{"role": "tool", "tool_call_id": call[0], "content": "x"} for call in calls]
    await ask(far_end, kind, USER, message.model_dump(exclude_none=True), *results, tools=[TIME])
    assert [message["role"] for message in far_end.asked[0]["messages"]] == ["user", "assistant", "tool", "tool"]


async def test_arguments_that_come_as_an_object(far_end: fake.OpenAI) -> None:
    far_end.answer = fake.OLLAMA_TOOL
    calls = (await ask(far_end, "ollama")).choices[0].message.tool_calls or []
    assert calls[0]["function"] == {"name": "get_weather", "arguments": '{"location": "Paris"}'}


@pytest.mark.parametrize(
    ("kind", "upstream_model", "field", "role"),
    [
        ("openai", "gpt-5", "max_completion_tokens", "developer"),
        ("openai", "o3", "max_completion_tokens", "developer"),
        ("openai", "somebody's", "max_tokens", "developer"),
        ("deepseek", "deepseek-chat", "max_tokens", "system"),
        ("ollama", "llama3.2", "max_tokens", "system"),
        ("dashscope-compatible", "qwen-plus", "max_tokens", "system"),
    ],
)
async def test_fields_by_the_names_they_have_there(
    far_end: fake.OpenAI, kind: ProviderKind, upstream_model: str, field: str, role: str
) -> None:
    far_end.answer = fake.HELLO
    ours = (
        "max_tokens" if field == "max_completion_tokens" or upstream_model == "somebody's" else "max_completion_tokens"
    )
    messages = [{"role": "developer", "content": "Be short."}, USER]
    await ask(far_end, kind, *messages, upstream_model=upstream_model, **{ours: 5})
    body = far_end.asked[0]
    assert {name: body[name] for name in body if name.startswith("max")} == {field: 5}
    assert body["messages"][0]["role"] == role


async def test_thinking_without_a_stream_is_asked_for_with_one(far_end: fake.OpenAI) -> None:
    """DashScope refuses it without (and so does the fake); a whole answer is folded here."""
    far_end.answer = fake.DASHSCOPE_THOUGHT
    answer = await ask(far_end, "dashscope-compatible", upstream_model="qwen-plus", enable_thinking=True, stream=False)
    assert answer.choices[0].message.reasoning_content == "27 x 453"
    assert (far_end.asked[0]["stream"], far_end.asked[0]["enable_thinking"]) == (True, True)


async def test_what_another_provider_signed_stays_here(far_end: fake.OpenAI) -> None:
    """DeepSeek wants its own thoughts back with tool calls; nobody but Anthropic and Gemini knows their signatures."""
    far_end.answer = fake.HELLO
    google = {"google": {"thought_signature": "c2ln"}}
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_time", "arguments": "{}"},
        "extra_content": google,
    }
    said = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm",
            "thinking_blocks": [{"type": "thinking"}], "extra_content": google}  # fmt: skip
    history = [USER, said, {"role": "tool", "tool_call_id": "call_1", "content": "noon"}]
    await ask(far_end, "deepseek", *history, tools=[TIME], upstream_model="deepseek-v4-pro")
    sent = far_end.asked[0]["messages"][1]
    assert sent["reasoning_content"] == "hm"
    assert "thinking_blocks" not in sent
    assert "extra_content" not in sent
    assert "extra_content" not in sent["tool_calls"][0]
    await ask(far_end, "wootz", *history, tools=[TIME])
    assert far_end.asked[0]["messages"][1]["thinking_blocks"] == [{"type": "thinking"}]


@pytest.mark.parametrize("usage", [{"prompt_tokens": "many"}, {"prompt_tokens": -1}, {"completion_tokens": 1.5}])
async def test_a_usage_that_is_no_count_is_no_protocol(far_end: fake.OpenAI, usage: dict[str, Any]) -> None:
    far_end.answer = [*fake.HELLO[:-2], fake.chunk(usage=usage), "[DONE]"]
    with pytest.raises(Exception, match="not OpenAI's protocol"):
        await ask(far_end, "openai")


async def test_a_native_only_model_says_where_it_is(far_end: fake.OpenAI) -> None:
    with pytest.raises(UnsupportedError, match='provider of kind "dashscope"') as refusal:
        await ask(far_end, "dashscope-compatible", upstream_model="wan2.5-t2v-plus")
    assert (refusal.value.param, far_end.asked) == ("model", [])
