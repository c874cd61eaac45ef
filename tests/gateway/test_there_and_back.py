"""Anthropic's SDK, our gateway, our provider, Anthropic's protocol at the far end: nothing is lost on the way there or
back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from fakes import anthropic as fake
from fakes.far_end import SECRET
from fastapi.responses import JSONResponse
from sayings import WEATHER
from serving import GatewayServer

from wootz.providers.anthropic import AnthropicModel
from wootz.providers.endpoint import Endpoint

ASK: dict[str, Any] = {"model": "ours", "max_tokens": 4000}
HI = {"role": "user", "content": "27 * 453?"}


@pytest.fixture(scope="module")
def far_end() -> Iterator[fake.Anthropic]:
    with fake.Anthropic() as far_end:
        yield far_end


@pytest.fixture(scope="module")
def sdk(far_end: fake.Anthropic, tmp_path_factory: pytest.TempPathFactory) -> Iterator[anthropic.Anthropic]:
    def models() -> dict:
        endpoint = Endpoint("ours", f"{far_end.url}/v1", SECRET, upstream_model="claude-opus-4-8", kind="anthropic")
        return {"ours": AnthropicModel(endpoint)}

    with GatewayServer(tmp_path_factory.mktemp("there"), models) as server:
        yield anthropic.Anthropic(base_url=server.url, api_key=server.key, max_retries=0)


def test_thoughts_come_signed_and_go_back_as_they_came(sdk: anthropic.Anthropic, far_end: fake.Anthropic) -> None:
    far_end.answer = fake.THINKING
    with sdk.messages.stream(**ASK, messages=[HI], thinking={"type": "adaptive"}) as stream:
        streamed = stream.get_final_message()
    whole = sdk.messages.create(**ASK, messages=[HI], thinking={"type": "adaptive"})
    assert [b.model_dump(exclude_none=True) for b in whole.content] == [
        {
            "type": "thinking",
            "thinking": "27 * 453 = 12231",
            "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pk",
        },
        {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"},
        {"type": "text", "text": "12,231"},
    ]
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    usage = whole.usage
    assert (usage.input_tokens, usage.cache_creation_input_tokens, usage.cache_read_input_tokens) == (25, 100, 2000)
    assert usage.output_tokens == 40

    sdk.messages.create(
        **ASK,
        messages=[HI, {"role": "assistant", "content": whole.content}, {"role": "user", "content": "Sure?"}],
        thinking={"type": "adaptive"},
    )
    assert far_end.asked[-1]["messages"][1]["content"] == [b.model_dump(exclude_none=True) for b in whole.content]


def test_tools_their_results_and_marks_for_the_cache(sdk: anthropic.Anthropic, far_end: fake.Anthropic) -> None:
    far_end.answer = fake.TOOLS
    mark = {"cache_control": {"type": "ephemeral"}}
    system = [{"type": "text", "text": "Look things up.", **mark}]
    tools = [{"name": "get_weather", "input_schema": WEATHER, **mark}, {"name": "get_time", "input_schema": WEATHER}]
    answer = sdk.messages.create(**ASK, messages=[HI], system=system, tools=tools)
    _, first, second = answer.content
    assert (first.name, first.input, second.input) == ("get_weather", {"location": "San Francisco, CA"}, {})
    assert (far_end.asked[-1]["system"], far_end.asked[-1]["tools"]) == (system, tools)

    results = [{"type": "tool_result", "tool_use_id": use.id, "content": "fine"} for use in (first, second)]
    turn = {"role": "assistant", "content": answer.content}
    sdk.messages.create(**ASK, messages=[HI, turn, {"role": "user", "content": results}], system=system, tools=tools)
    assert far_end.asked[-1]["messages"][2]["content"] == results


def test_a_remote_model_is_asked_to_count(sdk: anthropic.Anthropic, far_end: fake.Anthropic) -> None:
    far_end.answer = JSONResponse({"input_tokens": 2095})
    tools = [{"name": "get_time", "input_schema": WEATHER}]
    counted = sdk.messages.count_tokens(model="ours", messages=[HI], system="Be kind.", tools=tools)
    assert counted.input_tokens == 2095
    assert far_end.paths[-1] == "/v1/messages/count_tokens"
