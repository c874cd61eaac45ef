"""Counting a prompt's tokens at endpoints of OpenAI's protocol: what each kind is sent, and what its answer means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types import MessageCountTokensParams
from fakes import openai as fake
from fakes.far_end import SECRET
from fastapi.responses import JSONResponse
from openai.types.responses.input_token_count_params import InputTokenCountParams
from pydantic import TypeAdapter

from wootz.core import UnsupportedError, UpstreamError
from wootz.core.sections import ProviderKind
from wootz.core.wire import ChatRequest
from wootz.providers import Endpoint, OpenAICompatibleModel

PICTURE = "data:image/png;base64,iVBORw0KGgo="
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
CHAT = {
    "model": "ours",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"},
                                     {"type": "image_url", "image_url": {"url": PICTURE}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Noon?"}], "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
    ],
    "tools": [{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "time", "schema": {"type": "object"}}},
    "temperature": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def far_end() -> Iterator[fake.OpenAI]:
    with fake.OpenAI() as far_end:
        yield far_end


async def count(far_end: fake.OpenAI, kind: ProviderKind, answer: Any, chat: dict[str, Any] = CHAT) -> int:
    far_end.answer = answer
    model = OpenAICompatibleModel(Endpoint("ours", f"{far_end.url}/{kind}/v1", SECRET, upstream_model="it", kind=kind))
    try:
        return await model.count_tokens(ChatRequest.model_validate(chat))
    finally:
        await model.close()


async def test_openai_is_asked_what_responses_would_read(far_end: fake.OpenAI) -> None:
    assert await count(far_end, "openai", JSONResponse({"object": "response.input_tokens", "input_tokens": 41})) == 41
    assert far_end.paths[-1] == "/openai/v1/responses/input_tokens"
    body = far_end.asked[-1]
    TypeAdapter(InputTokenCountParams).validate_python(body)
    kinds = [item.get("type", item.get("role")) for item in body["input"]]
    assert kinds == ["system", "user", "assistant", "function_call", "function_call_output"]
    assert body["input"][1]["content"][1] == {"type": "input_image", "image_url": PICTURE, "detail": "auto"}
    assert (body["tools"][0]["name"], body["text"]["format"]["name"]) == ("get_time", "time")
    assert "temperature" not in body


async def test_vllm_tokenizes_by_the_models_template(far_end: fake.OpenAI) -> None:
    answer = {"count": 17, "max_model_len": 4096, "tokens": [1] * 17, "token_strs": None}
    assert await count(far_end, "vllm", JSONResponse(answer)) == 17
    assert far_end.paths[-1] == "/vllm/tokenize"
    assert far_end.asked[-1] == {"model": "it", "messages": CHAT["messages"], "tools": CHAT["tools"]}


async def test_another_wootz_is_asked_as_anthropic_is(far_end: fake.OpenAI) -> None:
    assert await count(far_end, "wootz", JSONResponse({"input_tokens": 9})) == 9
    assert far_end.paths[-1] == "/wootz/v1/messages/count_tokens"
    TypeAdapter(MessageCountTokensParams).validate_python(far_end.asked[-1])
    assert far_end.asked[-1]["system"] == [{"type": "text", "text": "Be brief."}]


@pytest.mark.parametrize("kind", ["deepseek", "ollama", "dashscope-compatible"])
async def test_who_cannot_count_says_so(far_end: fake.OpenAI, kind: ProviderKind) -> None:
    with pytest.raises(UnsupportedError, match="can't be counted"):
        await count(far_end, kind, JSONResponse({}))


async def test_an_endpoint_that_does_not_know_the_question_is_no_failure_of_the_model(far_end: fake.OpenAI) -> None:
    with pytest.raises(UnsupportedError, match="can't be counted beforehand"):
        await count(far_end, "openai", JSONResponse({"error": {"message": "no such route"}}, status_code=404))
    with pytest.raises(UpstreamError, match="not OpenAI's protocol"):
        await count(far_end, "openai", JSONResponse({"tokens": 3}))
    parts = [{"type": "input_audio", "input_audio": {"data": "", "format": "mp3"}}]
    with pytest.raises(UnsupportedError, match='a part of type "input_audio"'):
        await count(far_end, "openai", JSONResponse({}), CHAT | {"messages": [{"role": "user", "content": parts}]})
