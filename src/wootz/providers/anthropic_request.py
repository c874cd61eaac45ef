"""A chat request in the words of Anthropic's Messages API.

Nothing is dropped in silence: a field that Anthropic has no word for is refused, and so is a value out of its range.
Two wishes are ours and not the model's: ``priority`` orders our own queues, and ``user`` becomes ``metadata.user_id``.

Source: https://platform.claude.com/docs/en/api/messages, and the types of the ``anthropic`` package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from wootz.core import BadRequestError, UnsupportedError
from wootz.core.tool_wire import ToolChoice, ToolDefinition
from wootz.core.wire import ChatMessage, ChatRequest, ContentPart, ToolCall
from wootz.providers.capabilities import Capabilities, given, thinking_wanted
from wootz.providers.parts import media, parts_of, refuse_rest

DEFAULT_MAX_TOKENS = 8192
"""Anthropic wants a limit; this is it for a model whose own we don't know."""

MIN_BUDGET = 1024
BUDGETS = {"minimal": 1024, "low": 1024, "medium": 4096, "high": 16384, "xhigh": 32768, "max": 49152}
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}

TRANSLATED = {
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "stop", "stream",
    "stream_options", "tools", "tool_choice", "parallel_tool_calls", "response_format", "user", "safety_identifier",
    "priority", "reasoning_effort", "enable_thinking", "thinking_budget",
}  # fmt: skip
THEIRS = {"thinking", "output_config", "service_tier", "speed", "inference_geo", "cache_control", "context_management"}
"""Anthropic's own, sent as they are."""

SAMPLING = {"temperature", "top_p", "top_k"}

IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")


COUNTED = ("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control")
"""Fields of a request that its tokens are counted with."""


def messages_request(request: ChatRequest, upstream_model: str, row: Capabilities | None) -> dict[str, Any]:
    """The body of ``POST /v1/messages``. Raises `UnsupportedError` and `BadRequestError`, with the field."""
    fields = given(request)
    refuse_rest(fields, TRANSLATED | THEIRS, model=request.model)
    system, messages = _conversation(request, row)
    most = (row.max_output if row else None) or DEFAULT_MAX_TOKENS
    body: dict[str, Any] = {name: fields[name] for name in sorted(THEIRS & fields.keys())}
    body |= {
        "model": upstream_model,
        "max_tokens": request.max_completion_tokens or request.max_tokens or most,
        "messages": messages,
        "stream": True,
    }
    if system:
        body["system"] = system
    if request.temperature is not None and request.temperature > 1:
        raise UnsupportedError(f'"temperature" of model "{request.model}" is between 0 and 1', param="temperature")
    body |= {name: fields[name] for name in SAMPLING & fields.keys()}
    if request.stop_strings:
        body["stop_sequences"] = request.stop_strings
    if user := request.user or request.safety_identifier:
        body["metadata"] = {"user_id": user}
    if request.tools:
        body["tools"] = [_tool(tool, number, request.model) for number, tool in enumerate(request.tools)]
        body["tool_choice"] = _tool_choice(request)
    _add_format(body, request)
    _add_thinking(body, fields, row, request)
    return body


def _conversation(request: ChatRequest, row: Capabilities | None) -> tuple[list[Any], list[Any]]:
    """``(system, messages)``: neighbours of one role become one message, and so the results of parallel calls."""
    system: list[Any] = []
    messages: list[dict[str, Any]] = []
    for number, message in enumerate(request.messages):
        where = f"messages[{number}]"
        role = {"assistant": "assistant", "system": "system", "developer": "system"}.get(message.role, "user")
        if role == "system" and not messages:
            system += _blocks(message, where, request.model)
            continue
        if role == "system" and row is not None and "late_system" not in row.can:
            raise UnsupportedError(
                f'model "{request.model}" takes instructions only before the first turn', param=f"{where}.role"
            )
        blocks = (
            _result(message, where, request.model) if message.role == "tool" else _turn(message, where, request.model)
        )
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        else:
            messages.append({"role": role, "content": blocks})
    return system, messages


def _turn(message: ChatMessage, where: str, model: str) -> list[Any]:
    extra = message.model_extra or {}
    thinking = extra.get("thinking_blocks") or [] if message.role == "assistant" else []
    if not (isinstance(thinking, list) and all(isinstance(block, dict) for block in thinking)):
        param = f"{where}.thinking_blocks"
        raise BadRequestError(f'"{param}" must be the list that came with the answer', param=param)
    calls = [_tool_use(call) for call in message.tool_calls or ()]
    return [*thinking, *_blocks(message, where, model), *calls]


def _tool_use(call: ToolCall) -> dict[str, Any]:
    name, arguments = call.function.name, json.loads(call.function.arguments)
    return {"type": "tool_use", "id": _id(call.id), "name": name, "input": arguments}


def _result(message: ChatMessage, where: str, model: str) -> list[Any]:
    content = message.content if isinstance(message.content, str) else _blocks(message, where, model)
    block = {"type": "tool_result", "tool_use_id": _id(message.tool_call_id or ""), "content": content}
    return [block | _cache_mark(message.model_extra)]


def _id(call_id: str) -> str:
    """Anthropic's ids are of these characters; others' may not be. The same id always becomes the same one."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", call_id)


def _blocks(message: ChatMessage, where: str, model: str) -> list[Any]:
    """Empty texts are left out: Anthropic refuses them."""
    parts = parts_of(message)
    return [
        _block(part, f"{where}.content[{place}]", model) | _cache_mark(part.model_extra)
        for place, part in enumerate(parts)
        if part.type != "text" or part.text
    ]


def _cache_mark(extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """A breakpoint of the prompt cache, which others write in the same way."""
    return {"cache_control": extra["cache_control"]} if extra and extra.get("cache_control") else {}


def _block(part: ContentPart, where: str, model: str) -> dict[str, Any]:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    item = media(part, where, model=model)
    if item.kind == "image" and (item.url or item.mime_type in IMAGES):
        kind = "image"
    elif item.kind == "file" and (item.url or item.mime_type == "application/pdf"):
        kind = "document"
    else:
        what = item.mime_type or item.kind
        raise UnsupportedError(f'model "{model}" takes no {what}, only {", ".join(IMAGES)} and PDF', param=where)
    if item.url:
        return {"type": kind, "source": {"type": "url", "url": item.url}}
    return {"type": kind, "source": {"type": "base64", "media_type": item.mime_type, "data": item.data}}


def _tool(tool: ToolDefinition, number: int, model: str) -> dict[str, Any]:
    function = tool.function
    if function is None:
        raise UnsupportedError(f'model "{model}" takes tools of type "function"', param=f"tools[{number}].type")
    theirs: dict[str, Any] = {"name": function.name, "input_schema": {"type": "object", **(function.parameters or {})}}
    if function.description:
        theirs["description"] = function.description
    if function.strict:
        theirs["strict"] = True
    return theirs | _cache_mark(tool.model_extra)


def _tool_choice(request: ChatRequest) -> dict[str, Any]:
    if isinstance(request.tool_choice, ToolChoice):
        name = request.tool_choice.function.name if request.tool_choice.function else ""
        choice: dict[str, Any] = {"type": "tool", "name": name}
    else:
        choice = {"type": {"required": "any", "none": "none"}.get(request.tool_choice or "auto", "auto")}
    if request.parallel_tool_calls is False and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    return choice


def _add_format(body: dict[str, Any], request: ChatRequest) -> None:
    form = request.response_format
    if form is None or form.type == "text":
        return
    if form.type != "json_schema" or form.json_schema is None:
        hint = 'give "json_schema", or ask for JSON in words'
        message = f'model "{request.model}" has no response_format of type "{form.type[:40]}"'
        raise UnsupportedError(message, param="response_format", hint=hint)
    theirs = {"type": "json_schema", "schema": form.json_schema["schema"]}
    body["output_config"] = {**(body.get("output_config") or {}), "format": theirs}


def _add_thinking(body: dict[str, Any], fields: dict[str, Any], row: Capabilities | None, request: ChatRequest) -> None:
    """OpenAI's ``reasoning_effort``, and Qwen's ``enable_thinking`` and ``thinking_budget``, in Anthropic's two ways:
    by a budget up to Claude 4.5, adaptive from 4.6 on. A ``thinking`` of the user's own goes as it is."""
    budget, effort = fields.get("thinking_budget"), fields.get("reasoning_effort")
    if effort is not None and effort not in {*EFFORTS, "none"}:
        raise BadRequestError(f'"reasoning_effort" is one of none, {", ".join(EFFORTS)}', param="reasoning_effort")
    wanted = thinking_wanted(fields)
    if wanted is None or "thinking" in fields:
        return
    if not wanted[1]:
        body["thinking"] = {"type": "disabled"}
        return
    ways = row.thinking if row else ("adaptive",)
    if "adaptive" in ways and not (budget and "budget" in ways):
        if budget:
            raise UnsupportedError(
                f'model "{request.model}" thinks as much as it needs; give "reasoning_effort"', param="thinking_budget"
            )
        body["thinking"] = {"type": "adaptive", "display": "summarized"}
        if effort:
            body["output_config"] = {**(body.get("output_config") or {}), "effort": EFFORTS[effort]}
        return
    limit = body["max_tokens"]
    if limit <= MIN_BUDGET:
        raise UnsupportedError(f'to think, "max_tokens" has to be above {MIN_BUDGET}', param="max_tokens")
    budget = budget or BUDGETS[effort or "medium"]
    body["thinking"] = {"type": "enabled", "budget_tokens": max(MIN_BUDGET, min(budget, limit - MIN_BUDGET))}
