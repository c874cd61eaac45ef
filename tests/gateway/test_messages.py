"""``/v1/messages`` with the official SDK as the client."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import pydantic
import pytest
from sayings import WEATHER, call, thought
from serving import GatewayServer, ScriptedModel

from wootz.core import RateLimitError, UnavailableError, UnsupportedError
from wootz.core.wire import ChunkChoice, Delta

ASK: dict[str, Any] = {
    "model": "scripted",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "hi"}],
}
TOOL = {"name": "weather", "description": "Looks out of the window.", "input_schema": WEATHER}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}


@pytest.fixture
def sdk(server: GatewayServer) -> anthropic.Anthropic:
    """It sends its key as ``x-api-key``."""
    return anthropic.Anthropic(base_url=server.url, api_key=server.key, max_retries=0)


def said(model: ScriptedModel) -> list[dict[str, Any]]:
    return [message.model_dump(exclude_none=True) for message in model.asked[-1].messages]


def test_a_whole_answer(sdk: anthropic.Anthropic, model: ScriptedModel) -> None:
    answer = sdk.messages.create(
        **ASK,
        system="Be kind.",
        stop_sequences=["END"],
        metadata={"user_id": "ada"},
        extra_body={"temperature": 0.5, "top_k": 3},  # Newer models lack them, and so does this SDK.
    )
    assert [block.text for block in answer.content] == ["Hello, wörld"]
    assert (answer.role, answer.model, answer.stop_reason) == ("assistant", "scripted", "end_turn")
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (5, 2, 3)
    asked = model.asked[-1]
    assert said(model) == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    assert (asked.max_completion_tokens, asked.stop_strings, asked.top_k, asked.user) == (50, ["END"], 3, "ada")


def test_a_streamed_answer_has_the_whole_sequence(http: httpx.Client, model: ScriptedModel) -> None:
    known = pydantic.TypeAdapter(anthropic.types.RawMessageStreamEvent)
    text = http.post("/v1/messages", json=ASK | {"stream": True}).text
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert kinds == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    for line in text.splitlines():
        if line.startswith("data: ") and "ping" not in line:
            known.validate_json(line.removeprefix("data: "))


def test_streamed_and_whole_are_the_same_message(sdk: anthropic.Anthropic, model: ScriptedModel) -> None:
    signed = {"type": "thinking", "thinking": "Let me see.", "signature": "sig"}
    hidden = {"type": "redacted_thinking", "data": "xyz"}
    model.script = [thought("Let me "), thought("see."), Delta.model_validate({"thinking_blocks": [signed]})]
    model.script += [Delta.model_validate({"thinking_blocks": [hidden]}), "I'll look."]
    model.script += [*call(0, "a", "weather", '{"city":', '"Oslo"}'), *call(1, "b", "weather", "{}")]
    model.last = ChunkChoice(delta=Delta(), finish_reason="tool_calls")
    with sdk.messages.stream(**ASK, tools=[TOOL]) as stream:
        assert "".join(stream.text_stream) == "I'll look."
        streamed = stream.get_final_message()
    whole = sdk.messages.create(**ASK, tools=[TOOL])
    for answer in (streamed, whole):
        assert [block.model_dump(exclude_none=True) for block in answer.content] == [
            signed,
            hidden,
            {"type": "text", "text": "I'll look."},
            {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Oslo"}},
            {"type": "tool_use", "id": "b", "name": "weather", "input": {}},
        ]
        assert answer.stop_reason == "tool_use"
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 3)


def test_blocks_become_the_messages_of_a_chat(sdk: anthropic.Anthropic, model: ScriptedModel) -> None:
    marked = {"type": "text", "text": "Look things up.", "cache_control": {"type": "ephemeral"}}
    signed = {"type": "thinking", "thinking": "Hm.", "signature": "sig"}
    use = {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Malmö"}}
    other_use = use | {"id": "b"}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "rain"}]}
    failure = {"type": "tool_result", "tool_use_id": "b", "content": "no such city", "is_error": True}
    sdk.messages.create(
        **ASK
        | {
            "system": [marked],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE]},
                {
                    "role": "assistant",
                    "content": [signed, {"type": "text", "text": "I'll look."}, use, other_use],
                },
                {"role": "user", "content": [result, failure, {"type": "text", "text": "And?"}]},
                {"role": "assistant", "content": [signed | {"signature": ""}, {"type": "text", "text": "Wet."}]},
                {"role": "user", "content": "Thanks."},
            ],
            "tools": [TOOL],
            "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            "thinking": {"type": "enabled", "budget_tokens": 2000},
        }
    )
    function = {"name": "weather", "arguments": '{"city": "Malmö"}'}
    assert said(model) == [
        {"role": "system", "content": [marked]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
            ],
        },
        {
            "role": "assistant",
            "content": "I'll look.",
            "tool_calls": [{"id": id, "type": "function", "function": function} for id in "ab"],
            "thinking_blocks": [signed],
        },
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: no such city"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Wet.", "reasoning_content": "Hm."},
        {"role": "user", "content": "Thanks."},
    ]
    asked = model.asked[-1]
    assert (asked.tools[0].function.name, asked.tools[0].function.parameters) == ("weather", WEATHER)
    assert (asked.tool_choice.function.name, asked.parallel_tool_calls) == ("weather", False)
    assert asked.model_extra == {"enable_thinking": True, "thinking_budget": 2000}


def test_a_json_schema_and_the_sdks_parser(sdk: anthropic.Anthropic, model: ScriptedModel) -> None:
    class Weather(pydantic.BaseModel):
        city: str

    model.script = ['{"city": ', '"Oslo"}']
    assert sdk.messages.parse(**ASK, output_format=Weather).parsed_output == Weather(city="Oslo")
    assert model.asked[-1].response_format.json_schema["schema"]["required"] == ["city"]


def test_why_it_stopped(sdk: anthropic.Anthropic, model: ScriptedModel) -> None:
    def stop(**last: Any) -> tuple[str | None, str | None]:
        model.last = ChunkChoice(delta=Delta(), **last)
        answer = sdk.messages.create(**ASK)
        return answer.stop_reason, answer.stop_sequence

    assert stop(finish_reason="length") == ("max_tokens", None)
    assert stop(finish_reason="content_filter") == ("refusal", None)
    assert stop(finish_reason="stop", stop_reason="END") == ("stop_sequence", "END")
    assert stop(finish_reason="stop", stop_reason=2) == ("end_turn", None)


def test_a_call_that_was_cut_is_none(sdk: anthropic.Anthropic, model: ScriptedModel) -> None:
    model.script = ["Hm.", *call(0, "a", "weather", '{"city": "Os')]
    model.last = ChunkChoice(delta=Delta(), finish_reason="length")
    answer = sdk.messages.create(**ASK, tools=[TOOL])
    assert [block.type for block in answer.content] == ["text"]


# --- errors and keys ----------------------------------------------------------------------------------------------


def test_errors_have_anthropics_shape(sdk: anthropic.Anthropic, http: httpx.Client, model: ScriptedModel) -> None:
    with pytest.raises(anthropic.AuthenticationError):
        sdk.with_options(api_key="sk-wootz-no").messages.create(**ASK)
    with pytest.raises(anthropic.NotFoundError):
        sdk.messages.create(**ASK | {"model": "gone"})
    with pytest.raises(anthropic.BadRequestError) as bad:
        sdk.messages.create(**ASK, extra_body={"temperature": 2})
    error = bad.value.body
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert "temperature" in error["error"]["message"]
    assert error["request_id"] == bad.value.response.headers["x-request-id"]
    large = http.post("/v1/messages", json=ASK | {"system": "x" * 70_000})
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
    broken = http.post("/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["type"]) == (400, "error")
    model.script = [RateLimitError("too many", retry_after=3)]
    with pytest.raises(anthropic.RateLimitError) as limited:
        sdk.messages.create(**ASK, stream=True)
    assert limited.value.response.headers["retry-after"] == "3"


def test_a_failure_after_the_first_chunk_is_an_event(sdk: anthropic.Anthropic, model: ScriptedModel) -> None:
    model.script = ["Hel", UnavailableError("the engine went away")]
    with pytest.raises(anthropic.APIStatusError, match="went away"), sdk.messages.stream(**ASK) as stream:
        stream.until_done()


def test_a_bearer_is_as_good_and_two_keys_are_refused(server: GatewayServer) -> None:
    bearer = anthropic.Anthropic(base_url=server.url, auth_token=server.key, max_retries=0)
    assert bearer.messages.create(**ASK).content[0].text == "Hello, wörld"
    with pytest.raises(anthropic.AuthenticationError, match="two different keys"):
        bearer.messages.create(**ASK, extra_headers={"x-api-key": "sk-wootz-other"})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"mcp_servers": [{"type": "url"}]}, '"mcp_servers"'),
        ({"container": "c"}, '"container"'),
        ({"thinking": {"type": "enabled"}}, '"thinking"'),
        ({"messages": [{"role": "assistant", "content": "He"}]}, "gone on with"),
        ({"messages": [{"role": "user", "content": [{"type": "search_result"}]}]}, "search_result"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]}, '"file"'),
    ],
)
def test_a_refusal_says_what_it_is_about(http: httpx.Client, fields: dict, named: str) -> None:
    answer = http.post("/v1/messages", json=ASK | fields)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


def test_a_model_that_reads_text_only_refuses_an_image(sdk: anthropic.Anthropic, model: ScriptedModel) -> None:
    model.script = [UnsupportedError("this model reads text only", param="messages[0].content[0]")]
    with pytest.raises(anthropic.BadRequestError, match="text only"):
        sdk.messages.create(**ASK | {"messages": [{"role": "user", "content": [IMAGE]}]})


def test_tokens_that_cannot_be_counted_are_refused(sdk: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="be counted beforehand"):
        sdk.messages.count_tokens(model="scripted", messages=ASK["messages"])
