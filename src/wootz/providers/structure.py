"""What a request says about tools and structure, in the engine's words; and the engine's calls in the wire's."""

from __future__ import annotations

import json
from typing import Any

from wootz.core import BadRequestError, UnsupportedError
from wootz.core.tool_wire import StructuredFields, ToolChoice
from wootz.core.wire import ChatRequest
from wootz.engine.protocol import StructuredOutput, ToolCallDelta, ToolUse


def structured_output(request: StructuredFields) -> StructuredOutput | None:
    """Raises `BadRequestError` for a schema that is no JSON, `UnsupportedError` for a format that we don't know."""
    if not request.structures:
        return None
    (field,) = request.structures
    match field:
        case "response_format":
            return _response_format(request)
        case "guided_json":
            return StructuredOutput(json_schema=_schema(request.guided_json, field), param=field)
        case "guided_regex":
            return StructuredOutput(regex=request.guided_regex, param=field)
        case "guided_choice":
            return StructuredOutput(choice=tuple(request.guided_choice or ()), param=field)
        case "guided_grammar":
            return StructuredOutput(grammar=request.guided_grammar, param=field)
    wanted = request.structured_outputs
    assert wanted is not None
    return StructuredOutput(
        json_schema=None if wanted.json_ is None else _schema(wanted.json_, f"{field}.json"),
        json_object=wanted.json_object or False,
        regex=wanted.regex,
        choice=None if wanted.choice is None else tuple(wanted.choice),
        grammar=wanted.grammar,
        param=field,
    )


def _response_format(request: StructuredFields) -> StructuredOutput:
    format = request.response_format
    assert format is not None
    if format.type == "json_object":
        return StructuredOutput(json_object=True, param="response_format")
    if format.type == "json_schema" and format.json_schema is not None:
        return StructuredOutput(json_schema=format.json_schema["schema"], param="response_format.json_schema.schema")
    raise UnsupportedError(
        f'a response format of type "{format.type[:40]}" is not supported by this model', param="response_format.type"
    )


def _schema(given: dict[str, Any] | str | None, param: str) -> dict[str, Any]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            given = None
    if not isinstance(given, dict):
        raise BadRequestError(f'"{param}" is no JSON Schema', param=param)
    return given


def tool_use(request: ChatRequest) -> ToolUse | None:
    """Raises `UnsupportedError` for tools that are no functions."""
    if not request.tools:
        return None
    for number, tool in enumerate(request.tools):
        if tool.type != "function":
            raise UnsupportedError(
                f'tools of type "{tool.type[:40]}" are not supported by this model', param=f"tools[{number}].type"
            )
    choice, name = request.tool_choice or "auto", None
    if isinstance(choice, ToolChoice):
        if choice.function is None:
            raise UnsupportedError("this model can be made to call one function, or any", param="tool_choice.type")
        choice, name = "required", choice.function.name
    return ToolUse(
        tools=[tool.model_dump(exclude_none=True) for tool in request.tools],
        choice=choice,
        name=name,
        parallel=request.parallel_tool_calls is not False,
    )


def call_fragment(delta: ToolCallDelta) -> dict[str, Any]:
    """As OpenAI streams it: the first of a call has its id and name."""
    function: dict[str, Any] = {"arguments": delta.arguments}
    fragment: dict[str, Any] = {"index": delta.index, "function": function}
    if delta.name is not None:
        fragment |= {"id": delta.id, "type": "function"}
        function["name"] = delta.name
    if delta.incomplete:
        fragment["incomplete"] = True
    return fragment
