"""Where a prompt's stable beginning ends, said as each provider wants to hear it, and the application unaware."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any
from unittest.mock import ANY

import pytest
from fakes import anthropic as fake
from fakes.far_end import SECRET

from wootz.core.wire import ChatRequest
from wootz.providers import AnthropicModel, Endpoint
from wootz.providers.prompt_cache import RULES, prepare, prepare_for, rule_of

LONG = "You answer questions about our products. " * 200
SYSTEM = {"role": "system", "content": LONG}
ASKED = {"role": "user", "content": "Why?"}
ANSWERED = {"role": "assistant", "content": "Because."}


def request(*messages: dict[str, Any], **more: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": list(messages), **more})


def marked(prepared: ChatRequest) -> list[int]:
    """The messages that hold a mark, as a provider would see the request."""
    messages = prepared.model_dump(exclude_unset=True)["messages"]
    return [
        place
        for place, message in enumerate(messages)
        if isinstance(message["content"], list) and any("cache_control" in part for part in message["content"])
    ]


@pytest.mark.parametrize(("provider", "model"), [("anthropic", "claude-sonnet-5"), ("dashscope", "qwen3-max")])
def test_marks_stand_after_the_system_prompt_and_the_last_message_of_a_conversation(provider: str, model: str) -> None:
    assert marked(prepare(request(SYSTEM, ASKED), provider, model)) == [0]
    assert marked(prepare(request(SYSTEM, ASKED, ANSWERED, ASKED), provider, model)) == [0, 3]
    assert marked(prepare(request(ASKED, {**ANSWERED, "content": LONG}, ASKED), provider, model)) == [2]
    assert marked(prepare(request({"role": "user", "content": LONG}), provider, model)) == [], "written for nobody"
    assert marked(prepare(request({"role": "system", "content": "Be brief."}, ASKED), provider, model)) == []


def test_tools_stand_before_the_system_prompt_and_count() -> None:
    function = {"name": "f", "description": LONG}
    asked = request(
        {"role": "system", "content": "Be brief."}, ASKED, tools=[{"type": "function", "function": function}]
    )
    assert marked(prepare(asked, "anthropic", "claude-sonnet-5")) == [0]


def test_the_text_and_everything_else_stay_as_they_were() -> None:
    asked = request(SYSTEM, ASKED, temperature=0.5, unknown=1)
    before = asked.model_dump_json(exclude_unset=True)
    prepared = prepare(asked, "anthropic", "claude-sonnet-5")
    assert asked.model_dump_json(exclude_unset=True) == before
    assert [message.text for message in prepared.messages] == [message.text for message in asked.messages]
    assert prepared.journey is asked.journey
    assert prepared.temperature == 0.5
    assert prepared.model_extra == {"unknown": 1}


def test_a_minimum_is_the_models() -> None:
    middle = {"role": "system", "content": "x" * 4 * 2000}
    assert marked(prepare(request(middle, ASKED), "anthropic", "claude-sonnet-5")) == [0]
    assert marked(prepare(request(middle, ASKED), "anthropic", "claude-haiku-4-5-20251001")) == []


def test_marks_of_ones_own_are_kept_and_no_other_made() -> None:
    own = {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}
    asked = request(SYSTEM, own)
    assert prepare(asked, "anthropic", "claude-sonnet-5") is asked


def test_openai_gets_a_key_of_the_tenant_and_the_beginning() -> None:
    def key(tenant: str, *messages: dict[str, Any], **more: Any) -> Any:
        asked = request(*messages, **more)
        asked.journey.tenant = tenant
        return prepare(asked, "openai", "gpt-5").model_dump(exclude_unset=True).get("prompt_cache_key")

    one = key("a", SYSTEM, ASKED)
    assert one == key("a", SYSTEM, {"role": "user", "content": "another"})
    assert one != key("b", SYSTEM, ASKED)
    assert one != key("a", {**SYSTEM, "content": LONG + "2"}, ASKED)
    assert key("a", ASKED) is None
    assert key("a", SYSTEM, ASKED, prompt_cache_key="mine") == "mine"


@pytest.mark.parametrize(
    ("provider", "model"), [("gemini", "gemini-3"), ("deepseek", "x"), ("ollama", "x"), ("dashscope", "q")]
)
def test_others_are_told_nothing(provider: str, model: str) -> None:
    asked = request(SYSTEM, ASKED)
    assert prepare(asked, provider, model) is asked


async def test_anthropic_reads_the_mark_in_its_own_words() -> None:
    with fake.Anthropic() as far_end:
        far_end.answer = [*fake.start(), *fake.text(0, "x"), *fake.end()]
        for kept in (True, False):
            far_end.asked.clear()
            endpoint = Endpoint("m", f"{far_end.url}/v1", SECRET, "claude-sonnet-5", "anthropic", prompt_cache=kept)
            model = AnthropicModel(endpoint)
            async with aclosing(model.chat(request(SYSTEM, ASKED))) as chunks:
                assert [chunk async for chunk in chunks]
            await model.close()
            assert ('"cache_control": {"type": "ephemeral"}' in json.dumps(far_end.asked[0]["system"])) is kept


def test_an_endpoint_that_only_speaks_openais_protocol_gets_no_field_of_openais() -> None:
    def told(**where: Any) -> ChatRequest:
        return prepare_for(request(SYSTEM, ASKED), Endpoint("m", **where))

    assert told(base_url="https://api.openai.com/v1").model_extra == {"prompt_cache_key": ANY}
    assert told(base_url="https://api.openai.com.evil.example/v1").model_extra == {}
    compatible = told(base_url="https://x/v1", kind="dashscope-compatible", upstream_model="qwen3-max")
    assert marked(compatible) == [0]


def test_every_rule_can_be_found_and_its_prices_make_sense() -> None:
    for rule in RULES:
        assert rule_of(rule.provider, rule.prefix + "-x") is rule
        assert 0 < rule.read_price < 1 <= rule.write_price
        assert bool(rule.max_marks) == (rule.how == "marks")
