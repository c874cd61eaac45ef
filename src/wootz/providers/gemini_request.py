"""A chat request in the words of Gemini's ``generateContent``. What it has no word for is refused, never dropped.

Gemini signs its thoughts and wants the signatures back in the very parts they came with, above all in calls of
functions (from Gemini 3 on it refuses a call without). They travel where Google's own OpenAI-compatible API puts them,
in ``extra_content`` of a tool call or of a message. A call that another provider's model made has none, and says so in
the word that Google has for it.

Source: https://ai.google.dev/api/generate-content, …/gemini-api/docs/thought-signatures, …/docs/openai.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from wootz.core import BadRequestError, UnsupportedError
from wootz.core.tool_wire import ToolChoice, ToolDefinition
from wootz.core.wire import ChatMessage, ChatRequest, ContentPart
from wootz.providers.capabilities import Capabilities, given, thinking_wanted
from wootz.providers.parts import media, parts_of, refuse_rest

NO_SIGNATURE = "skip_thought_signature_validator"

TRANSLATED = {
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "n", "seed", "stop",
    "presence_penalty", "frequency_penalty", "stream", "stream_options", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "user", "safety_identifier", "priority", "reasoning_effort", "enable_thinking",
    "thinking_budget", "google", "logprobs", "top_logprobs",
}  # fmt: skip

GOOGLE = {"safety_settings": "safetySettings", "cached_content": "cachedContent", "thinking_config": "thinkingConfig"}
"""What may be in the field ``google``, as in Google's OpenAI-compatible API."""

SETTINGS = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "n": "candidateCount",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}

LEVELS = {"minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "xhigh": "XHIGH", "max": "XHIGH"}
BUDGETS = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
"""As Google's OpenAI-compatible API maps ``reasoning_effort`` for Gemini 2.5."""


def generate_request(request: ChatRequest, row: Capabilities | None) -> dict[str, Any]:
    """The body of ``streamGenerateContent``. Raises `UnsupportedError` and `BadRequestError`, with the field."""
    fields = given(request)
    refuse_rest(fields, TRANSLATED, model=request.model)
    google = _google(fields.get("google"), request.model)
    config: dict[str, Any] = {theirs: fields[ours] for ours, theirs in SETTINGS.items() if ours in fields}
    if (most := request.max_completion_tokens or request.max_tokens) is not None:
        config["maxOutputTokens"] = most
    if request.stop_strings:
        config["stopSequences"] = request.stop_strings
    form = request.response_format
    if form is not None and form.type in ("json_object", "json_schema"):
        config["responseMimeType"] = "application/json"
        if form.json_schema is not None:
            config["responseJsonSchema"] = form.json_schema["schema"]
    if thinking := google.pop("thinkingConfig", None) or _thinking(fields, row):
        config["thinkingConfig"] = thinking
    system, contents = _conversation(request, signed=row is None or "level" in row.thinking)
    body: dict[str, Any] = {"contents": contents, **google}
    if system:
        body["systemInstruction"] = {"parts": system}
    if request.tools:
        declarations = [_declaration(tool, number, request.model) for number, tool in enumerate(request.tools)]
        body["tools"] = [{"functionDeclarations": declarations}]
        body["toolConfig"] = {"functionCallingConfig": _calling(request)}
    if config:
        body["generationConfig"] = config
    return body


def _google(field: Any, model: str) -> dict[str, Any]:
    if field is None:
        return {}
    if not isinstance(field, dict):
        raise BadRequestError('"google" must be an object', param="google")
    for name in field:
        if name not in GOOGLE:
            raise UnsupportedError(f'the provider of model "{model}" has no "google.{name[:80]}"', param="google")
    return {GOOGLE[name]: value for name, value in field.items()}


def _conversation(request: ChatRequest, *, signed: bool) -> tuple[list[Any], list[Any]]:
    """``(system, contents)``; neighbours of one role become one turn, so the results of parallel calls are in one."""
    system: list[Any] = []
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for number, message in enumerate(request.messages):
        where = f"messages[{number}]"
        parts = _parts(message, where, request.model)
        if message.role in ("system", "developer"):
            if contents:
                raise UnsupportedError(
                    f'model "{request.model}" takes instructions only before the first turn', param=f"{where}.role"
                )
            system += parts
            continue
        if message.role == "assistant":
            if parts and (signature := _signature(message.model_extra)):
                parts[-1]["thoughtSignature"] = signature
            parts += _calls(message, names, signed=signed)
        elif message.role == "tool":
            parts = [_response(message, names)]
        role = "model" if message.role == "assistant" else "user"
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        else:
            contents.append({"role": role, "parts": parts})
    return system, contents


def _calls(message: ChatMessage, names: dict[str, str], *, signed: bool) -> list[dict[str, Any]]:
    """``names`` gets each call's function by its id: a result has to name it."""
    parts: list[dict[str, Any]] = []
    for number, call in enumerate(message.tool_calls or ()):
        names[call.id] = call.function.name
        arguments = json.loads(call.function.arguments)
        part: dict[str, Any] = {"functionCall": {"id": call.id, "name": call.function.name, "args": arguments}}
        if signature := _signature(call.model_extra) or (NO_SIGNATURE if signed and number == 0 else None):
            part["thoughtSignature"] = signature
        parts.append(part)
    return parts


def _signature(extra: Mapping[str, Any] | None) -> str | None:
    content = (extra or {}).get("extra_content")
    google = content.get("google") if isinstance(content, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return signature if isinstance(signature, str) else None


def _response(message: ChatMessage, names: Mapping[str, str]) -> dict[str, Any]:
    """A function's response is an object: what is none is put into one."""
    try:
        result = json.loads(message.text)
    except (ValueError, RecursionError):
        result = message.text
    response = result if isinstance(result, dict) else {"result": result}
    call_id = message.tool_call_id or ""
    return {"functionResponse": {"id": call_id, "name": names[call_id], "response": response}}


def _parts(message: ChatMessage, where: str, model: str) -> list[dict[str, Any]]:
    return [_part(part, f"{where}.content[{place}]", model) for place, part in enumerate(parts_of(message))]


def _part(part: ContentPart, where: str, model: str) -> dict[str, Any]:
    if part.type == "text":
        return {"text": part.text}
    item = media(part, where, model=model)
    if item.data is not None:
        return {"inlineData": {"mimeType": item.mime_type, "data": item.data}}
    file = {"fileUri": item.url}
    if item.mime_type or item.kind == "video":
        return {"fileData": file | ({"mimeType": item.mime_type} if item.mime_type else {})}
    message = f'model "{model}" has to know what is at this address, and its ending does not tell'
    raise BadRequestError(message, param=where, hint="send it as a data: URL")


def _declaration(tool: ToolDefinition, number: int, model: str) -> dict[str, Any]:
    function = tool.function
    if function is None:
        raise UnsupportedError(f'model "{model}" takes tools of type "function"', param=f"tools[{number}].type")
    theirs: dict[str, Any] = {"name": function.name}
    if function.description:
        theirs["description"] = function.description
    if function.parameters:
        theirs["parametersJsonSchema"] = {"type": "object", **function.parameters}
    return theirs


def _calling(request: ChatRequest) -> dict[str, Any]:
    if request.parallel_tool_calls is False:
        raise UnsupportedError(
            f'model "{request.model}" can\'t be kept to one call at a time', param="parallel_tool_calls"
        )
    if isinstance(request.tool_choice, ToolChoice) and request.tool_choice.function:
        return {"mode": "ANY", "allowedFunctionNames": [request.tool_choice.function.name]}
    return {"mode": {"required": "ANY", "none": "NONE"}.get(str(request.tool_choice), "AUTO")}


def _thinking(fields: Mapping[str, Any], row: Capabilities | None) -> dict[str, Any] | None:
    """OpenAI's ``reasoning_effort``, Qwen's ``enable_thinking`` and ``thinking_budget``: a budget of tokens in Gemini
    2.5, a level from 3 on. Who asks for thinking is shown the thoughts."""
    budget, effort = fields.get("thinking_budget"), fields.get("reasoning_effort")
    if effort is not None and effort not in {*LEVELS, "none"}:
        raise BadRequestError(f'"reasoning_effort" is one of none, {", ".join(LEVELS)}', param="reasoning_effort")
    wanted = thinking_wanted(fields)
    if wanted is None and budget is None:
        return None
    if wanted is not None and not wanted[1]:
        return {"thinkingBudget": 0}
    thinking: dict[str, Any] = {"includeThoughts": True}
    if budget is not None:
        thinking["thinkingBudget"] = budget
    elif effort is not None and row is not None and "budget" in row.thinking:
        thinking["thinkingBudget"] = BUDGETS[effort]
    elif effort is not None:
        thinking["thinkingLevel"] = LEVELS[effort]
    return thinking
