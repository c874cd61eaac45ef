"""What a conversation with tools has to keep to, and fields that can't be given together: refusals name the field."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from wootz.core.wire import ChatRequest, CompletionRequest

USER = {"role": "user", "content": "hi"}


def call(id: str = "a", arguments: str = "{}", name: str = "f") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def asks(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def result(id: str | None = "a") -> dict[str, Any]:
    return {"role": "tool", "content": "42"} | ({} if id is None else {"tool_call_id": id})


def tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def chat(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": list(messages) or [USER], **fields})


def refused(*messages: dict[str, Any], **fields: Any) -> str:
    """The field that the refusal names, by pydantic's place and the message's first words."""
    with pytest.raises(ValidationError) as refusal:
        chat(*messages, **fields)
    error = refusal.value.errors()[0]
    named = re.search(r'"([\w.\[\]]+)"', error["msg"])
    return ".".join([*map(str, error["loc"]), *([named[1]] if named else [])])


def test_a_right_history_passes() -> None:
    chat(USER, asks(call("a"), call("b", '{"x": [1]}')), result("b"), result("a"), asks(call("a")), result("a"), USER)


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([USER, result()], "messages[1].tool_call_id"),
        ([USER, asks(call()), result("b")], "messages[2].tool_call_id"),
        ([USER, asks(call()), result(None)], "messages[2].tool_call_id"),
        ([USER, asks(call()), result(), result()], "messages[3].tool_call_id"),
        ([USER, asks(call()), USER], "messages[1].tool_calls[0]"),
        ([USER, asks(call("a"), call("b")), result("a")], "messages[1].tool_calls[1]"),
        ([USER, asks(call()), USER, result()], "messages[1].tool_calls[0]"),
        ([USER, asks(call(arguments="{")), result()], "messages[1].tool_calls[0].function.arguments"),
        ([USER, asks(call(arguments="")), result()], "messages[1].tool_calls[0].function.arguments"),
        ([USER, asks(call(arguments="[1]")), result()], "messages[1].tool_calls[0].function.arguments"),
        ([USER, asks(call(id="")), result("")], "messages[1].tool_calls[0].id"),
        ([USER, asks(call(), call()), result()], "messages[1].tool_calls[1].id"),
        ([USER, asks(call(name="")), result()], "messages[1].tool_calls[0].function.name"),
        ([{**USER, "tool_calls": [call()]}], "messages[0].tool_calls"),
        ([USER, {"role": "assistant", "content": "x", "tool_calls": []}], "messages[1].tool_calls"),
    ],
)
def test_a_malformed_history_is_refused_by_name(messages: list[dict[str, Any]], field: str) -> None:
    assert refused(*messages) == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [tool(), tool()]}, "tools[1].function.name"),
        ({"tools": [tool("no spaces")]}, "tools.0.function.name"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools.0.function.parameters"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
         "tool_choice.function.name"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.json"),
        ({"structured_outputs": {}}, "structured_outputs.json"),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_by_name(fields: dict[str, Any], field: str) -> None:
    found = refused(**fields)
    assert found.startswith(field) or found.endswith(field) or found.replace("function.", "", 1) == field, found


def test_what_was_written_is_passed_on_as_it_was() -> None:
    """A remote provider sends `model_dump(exclude_unset=True)`."""
    fields = {
        "tools": [tool(parameters={"type": "object"}, strict=True), {"type": "custom", "custom": {"name": "x"}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "structured_outputs": {"json": {"type": "object"}, "whitespace_pattern": " "},
        "parallel_tool_calls": False,
    }
    assert chat(**fields).model_dump(exclude_unset=True) == {"model": "m", "messages": [USER], **fields}
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}}
    completion = {"model": "m", "prompt": "x", "response_format": format, "guided_grammar": None}
    assert CompletionRequest.model_validate(completion).model_dump(exclude_unset=True) == completion
