"""A JSON answer from any `LanguageModel`, by the strongest means that it has, and which that was.

A schema that is enforced is better than JSON mode, and that is better than a prompt: the first that the model doesn't
refuse is taken. Under the weaker ones the prompt says what is wanted, the answer is read with patience
(`wootz.providers.tolerant_json`), and whether it fits the schema is for the caller to check.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from wootz.core import BadRequestError, LanguageModel, UpstreamError, collect_chat
from wootz.core.tool_wire import ResponseFormat
from wootz.core.wire import ChatMessage, ChatRequest, Guarantee
from wootz.providers.tolerant_json import parse_json


async def ask_json(
    model: LanguageModel, request: ChatRequest, schema: Mapping[str, Any], *, name: str = "answer"
) -> tuple[Any, Guarantee]:
    """The value, and what is certain of it. ``request`` has no response format of its own.

    Raises what the model raises, `NoJSONError` for a prompted answer without JSON in it, and `UpstreamError` for one
    that was cut off: half a structure is never returned.
    """
    enforced = {"name": name, "schema": dict(schema), "strict": True}
    asked = _with_words(request, schema)
    ways: list[tuple[ChatRequest, ResponseFormat | None, Guarantee]] = [
        (request, ResponseFormat(type="json_schema", json_schema=enforced), "schema"),
        (asked, ResponseFormat(type="json_object"), "json"),
        (asked, None, "prompted"),
    ]
    for wanted, format, guarantee in ways:
        try:
            answer = await collect_chat(model.chat(wanted.model_copy(update={"response_format": format})))
        except BadRequestError as error:
            if format is None or not _is_about_the_format(error):
                raise
            continue
        choice = answer.choices[0]
        if choice.finish_reason == "length":
            raise UpstreamError("the answer was cut off before its structure was whole", hint='raise "max_tokens"')
        return parse_json(choice.message.content or ""), choice.guarantee or guarantee
    raise AssertionError("the last way returns or raises")


def schema_prompt(schema: Mapping[str, Any]) -> str:
    """What a model is told that nothing holds to it: keys, types, allowed values; no fence, no prose."""
    lines = ["Answer with one JSON value and nothing else: no explanation, no code fence."]
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        lines.append("It is an object with these keys:")
        for key, value in properties.items():
            need = "required" if key in schema.get("required", ()) else "optional"
            lines.append(f"- {json.dumps(key, ensure_ascii=False)} ({need}): {_described(value)}")
    lines.append(f"Its JSON Schema: {json.dumps(schema, ensure_ascii=False)}")
    return "\n".join(lines)


def _described(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "anything"
    if "enum" in schema:
        return "one of " + ", ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    kind = schema.get("type", "anything")
    text = " or ".join(kind) if isinstance(kind, list) else str(kind)
    return f"{text}, {schema['description']}" if schema.get("description") else text


def _with_words(request: ChatRequest, schema: Mapping[str, Any]) -> ChatRequest:
    prompt = schema_prompt(schema)
    first, *rest = request.messages
    if first.role in ("system", "developer"):
        messages = [first.model_copy(update={"content": f"{first.text}\n\n{prompt}"}), *rest]
    else:
        messages = [ChatMessage(role="system", content=prompt), first, *rest]
    return request.model_copy(update={"messages": messages})


def _is_about_the_format(error: BadRequestError) -> bool:
    return "response_format" in (error.param or "") or "response_format" in error.message
