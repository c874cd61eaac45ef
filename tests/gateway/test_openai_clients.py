"""The official SDK and LiteLLM must not notice that this is not OpenAI."""

from __future__ import annotations

import litellm
import openai
import pytest
from serving import GatewayServer, ScriptedModel

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def sdk(server: GatewayServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)


def test_sdk_gets_a_whole_answer(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="scripted", messages=MESSAGES)
    assert answer.choices[0].message.content == "Hello, wörld"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 10
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer.object == "chat.completion"


def test_sdk_streams_and_gets_usage_only_when_it_asks(sdk: openai.OpenAI) -> None:
    chunks = list(sdk.chat.completions.create(model="scripted", messages=MESSAGES, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, wörld"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert all(chunk.usage is None for chunk in chunks)

    options = {"include_usage": True}
    chunks = list(sdk.chat.completions.create(model="scripted", messages=MESSAGES, stream=True, stream_options=options))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 10


def test_sdk_stream_helper(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(model="scripted", messages=MESSAGES) as stream:
        assert [event.delta for event in stream if event.type == "content.delta"] == ["Hel", "lo, ", "wörld"]
        assert stream.get_final_completion().choices[0].message.content == "Hello, wörld"


async def test_async_sdk(server: GatewayServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as sdk:
        whole = await sdk.chat.completions.create(model="scripted", messages=MESSAGES)
        assert whole.choices[0].message.content == "Hello, wörld"
        stream = await sdk.chat.completions.create(model="scripted", messages=MESSAGES, stream=True)
        assert [chunk.choices[0].delta.content async for chunk in stream][:3] == ["Hel", "lo, ", "wörld"]


def test_sdk_completes_text(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model="scripted", prompt="Say")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello, wörld", "stop")
    chunks = sdk.completions.create(model="scripted", prompt="Say", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello, wörld"


def test_sdk_lists_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["scripted", "org/other"]
    assert sdk.models.retrieve("org/other").id == "org/other"


def test_sdk_knows_our_errors(sdk: openai.OpenAI, server: GatewayServer, model: ScriptedModel) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.chat.completions.create(model="gone", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.chat.completions.create(model="scripted", messages=MESSAGES, temperature=9)
    assert (bad.value.code, bad.value.param) == ("integer_above_max_value", "temperature")
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="sk-wootz-no").models.list()


def test_litellm_chats_and_streams(server: GatewayServer) -> None:
    ask = {"model": "openai/scripted", "api_base": f"{server.url}/v1", "api_key": server.key, "messages": MESSAGES}
    answer = litellm.completion(**ask)
    assert answer.choices[0].message.content == "Hello, wörld"
    assert answer.usage.total_tokens == 10
    stream = litellm.completion(**ask, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello, wörld"
