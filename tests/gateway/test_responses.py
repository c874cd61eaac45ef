"""``/v1/responses`` with the official SDK as the client."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pydantic
import pytest
from openai.types.responses import Response
from sayings import WEATHER, call, thought
from serving import GatewayServer, ScriptedModel

from wootz.core import UnavailableError, UnsupportedError
from wootz.core.wire import ChunkChoice, Delta
from wootz.gateway.surfaces.response_store import ResponseStore

TOOL = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}
FILE_IMAGE = {"type": "input_image", "file_id": "file-1"}


@pytest.fixture
def sdk(server: GatewayServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)


def said(model: ScriptedModel) -> list[dict[str, Any]]:
    """The messages that the model was asked with."""
    return [message.model_dump(exclude_none=True) for message in model.asked[-1].messages]


def test_a_whole_answer(sdk: openai.OpenAI, model: ScriptedModel) -> None:
    answer = sdk.responses.create(
        model="scripted", input="hi", instructions="Be kind.", max_output_tokens=9, metadata={"trip": "1"}
    )
    assert answer.output_text == "Hello, wörld"
    assert (answer.status, answer.object, answer.model) == ("completed", "response", "scripted")
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (7, 3, 10)
    assert answer.usage.input_tokens_details.cached_tokens == 2
    assert answer.metadata == {"trip": "1"}
    assert said(model) == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    assert model.asked[-1].max_completion_tokens == 9


def test_a_streamed_answer_has_the_whole_sequence(sdk: openai.OpenAI, model: ScriptedModel) -> None:
    events = list(sdk.responses.create(model="scripted", input="hi", stream=True))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 3,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hello, wörld"
    assert events[-1].response.output_text == "Hello, wörld"
    assert events[0].response.output == []


def test_thoughts_text_and_parallel_calls_are_items(sdk: openai.OpenAI, model: ScriptedModel) -> None:
    model.script = [thought("Let me "), thought("see."), "I'll look."]
    model.script += call(0, "call_1", "weather", '{"city":', '"Oslo"}') + call(
        1, "call_2", "weather", '{"city":"Rome"}'
    )
    model.last = ChunkChoice(delta=Delta(), finish_reason="tool_calls")
    with sdk.responses.stream(model="scripted", input="hi", tools=[TOOL]) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    whole = sdk.responses.create(model="scripted", input="hi", tools=[TOOL])
    for answer in (streamed, whole):
        thoughts, message, first, second = answer.output
        assert (thoughts.type, thoughts.content[0].text) == ("reasoning", "Let me see.")
        assert (message.type, message.content[0].text) == ("message", "I'll look.")
        assert (first.type, first.call_id, first.name, first.arguments) == (
            "function_call",
            "call_1",
            "weather",
            '{"city":"Oslo"}',
        )
        assert (second.call_id, second.arguments) == ("call_2", '{"city":"Rome"}')
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [(event.name, event.output_index) for event in done] == [("weather", 2), ("weather", 3)]
    assert model.asked[-1].tools[0].function.name == "weather"


def test_every_event_is_one_that_the_sdk_knows(http: httpx.Client, model: ScriptedModel) -> None:
    """The SDK itself reads anything; here its types are held to."""
    from openai.types.responses import ResponseStreamEvent

    known = pydantic.TypeAdapter(ResponseStreamEvent, config=pydantic.ConfigDict(extra="allow"))
    for summary in (None, "auto"):
        model.script = [thought("Hm."), "Yes.", *call(0, "call_1", "weather", "{}")]
        ask = {"model": "scripted", "input": "hi", "stream": True, "tools": [TOOL], "reasoning": {"summary": summary}}
        lines = http.post("/v1/responses", json=ask).text.splitlines()
        events = [known.validate_json(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        types = {event.type for event in events}
        assert ("response.reasoning_summary_text.delta" in types) == (summary is not None)
        assert ("response.reasoning_text.delta" in types) == (summary is None)
        Response.model_validate(events[-1].response.model_dump())


def test_items_become_the_messages_of_a_chat(sdk: openai.OpenAI, model: ScriptedModel) -> None:
    sdk.responses.create(
        model="scripted",
        store=False,
        input=[
            {"role": "developer", "content": "Look things up."},
            {"role": "user", "content": [{"type": "input_text", "text": "What is this?"}, IMAGE]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "b", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "rain"},
            {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "sun"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Wet."}]},
            {"role": "user", "content": "Thanks."},
        ],
    )
    function = {"name": "weather", "arguments": "{}"}
    assert said(model) == [
        {"role": "developer", "content": "Look things up."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": IMAGE["image_url"], "detail": "low"}},
            ],
        },
        {
            "role": "assistant",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": id, "type": "function", "function": function} for id in "ab"],
        },
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
        {"role": "tool", "tool_call_id": "b", "content": "sun"},
        {"role": "assistant", "content": "Wet."},
        {"role": "user", "content": "Thanks."},
    ]


def test_a_json_schema_and_the_sdks_parser(sdk: openai.OpenAI, model: ScriptedModel) -> None:
    class Weather(pydantic.BaseModel):
        city: str

    model.script = ['{"city": ', '"Oslo"}']
    assert sdk.responses.parse(model="scripted", input="hi", text_format=Weather).output_parsed == Weather(city="Oslo")
    asked = model.asked[-1].response_format
    assert (asked.type, asked.json_schema["name"], asked.json_schema["strict"]) == ("json_schema", "Weather", True)
    assert asked.json_schema["schema"]["required"] == ["city"]


def test_an_answer_that_is_cut_is_incomplete(sdk: openai.OpenAI, model: ScriptedModel) -> None:
    model.last = ChunkChoice(delta=Delta(), finish_reason="length")
    answer = sdk.responses.create(model="scripted", input="hi")
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output[0].status == "incomplete"
    assert list(sdk.responses.create(model="scripted", input="hi", stream=True))[-1].type == "response.incomplete"


def test_failures_before_and_after_the_first_chunk(sdk: openai.OpenAI, model: ScriptedModel) -> None:
    model.script = [UnavailableError("the model is loading")]
    with pytest.raises(openai.InternalServerError) as early:
        sdk.responses.create(model="scripted", input="hi", stream=True)
    assert early.value.status_code == 503
    model.script = ["Hel", UnavailableError("the engine went away")]
    last = list(sdk.responses.create(model="scripted", input="hi", stream=True))[-1]
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert (last.response.error.code, last.response.error.message) == ("server_error", "the engine went away")


# --- kept responses -----------------------------------------------------------------------------------------------


def test_going_on_from_a_response_by_its_id(sdk: openai.OpenAI, model: ScriptedModel) -> None:
    first = sdk.responses.create(model="scripted", input="My name is Ada.", instructions="Be kind.")
    second = list(sdk.responses.create(model="scripted", input="Hm.", previous_response_id=first.id, stream=True))[-1]
    sdk.responses.create(model="scripted", input="Who am I?", previous_response_id=second.response.id)
    texts = [(message["role"], message["content"]) for message in said(model)]
    assert texts == [
        ("user", "My name is Ada."),
        ("assistant", "Hello, wörld"),
        ("user", "Hm."),
        ("assistant", "Hello, wörld"),
        ("user", "Who am I?"),
    ]


def test_a_response_is_kept_before_its_end_is_told(
    sdk: openai.OpenAI, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = ResponseStore.save

    async def save_slowly(*args: Any) -> None:
        await asyncio.sleep(0.2)
        await save(*args)

    monkeypatch.setattr(ResponseStore, "save", save_slowly)
    for stream in (True, False):
        told = sdk.responses.create(model="scripted", input="hi", stream=stream)
        id = list(told)[-1].response.id if stream else told.id
        assert sdk.responses.retrieve(id).output_text == "Hello, wörld"


def test_a_kept_response_is_its_keys_alone(sdk: openai.OpenAI, server: GatewayServer) -> None:
    answer = sdk.responses.create(model="scripted", input="secret")
    assert sdk.responses.retrieve(answer.id).output_text == "Hello, wörld"
    (item,) = sdk.responses.input_items.list(answer.id).data
    assert item.content[0].text == "secret"

    stranger = sdk.with_options(api_key=server.admin_key)
    for attempt in (
        lambda: stranger.responses.retrieve(answer.id),
        lambda: stranger.responses.input_items.list(answer.id),
        lambda: stranger.responses.delete(answer.id),
    ):
        with pytest.raises(openai.NotFoundError):
            attempt()
    with pytest.raises(openai.BadRequestError) as foreign:
        stranger.responses.create(model="scripted", input="And?", previous_response_id=answer.id)
    assert (foreign.value.code, foreign.value.param) == ("previous_response_not_found", "previous_response_id")

    sdk.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(answer.id)


def test_what_is_not_to_be_stored_is_not(sdk: openai.OpenAI) -> None:
    answer = sdk.responses.create(model="scripted", input="hi", store=False)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(answer.id)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.function.name"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"temperature": 3}, "temperature"),
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call", "id": "x", "status": "completed"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "x"}]}, "input[0].tool_call_id"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
    ],
)
def test_a_refusal_names_the_field(http: httpx.Client, fields: dict, param: str) -> None:
    answer = http.post("/v1/responses", json={"model": "scripted", "input": "hi"} | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_model_that_reads_text_only_refuses_an_image(sdk: openai.OpenAI, model: ScriptedModel) -> None:
    model.script = [UnsupportedError("this model reads text only", param="messages[0].content[0]")]
    with pytest.raises(openai.BadRequestError, match="text only"):
        sdk.responses.create(model="scripted", input=[{"role": "user", "content": [IMAGE]}])
