"""Between OpenAI's words and DashScope's native ones, for a chat: a request there, a stream's events back.

Natively a request is ``{"model", "input": {"messages"}, "parameters"}``. Both sides have the same tools and finish
reasons; parts of a message are ``{"image": URL}`` there and ``{"type": "image_url", …}`` here. DashScope overlooks a
parameter that it does not know, so what it lacks is refused here, and what we do not know is handed on to it.

Source: the DashScope API reference for Qwen, and the dashscope SDK 2.0.2, which is what reads and writes these shapes.
"""

from __future__ import annotations

from typing import Any

from wootz.core import BadRequestError, UnsupportedError
from wootz.core.wire import (
    ChatMessage,
    ChatRequest,
    ChoiceLogprobs,
    ChunkChoice,
    ContentPart,
    Delta,
    FinishReason,
    Usage,
)

SAME = (
    "temperature",
    "top_p",
    "repetition_penalty",
    "presence_penalty",
    "seed",
    "n",
    "logprobs",
    "top_logprobs",
    "parallel_tool_calls",
)
"""Parameters of the same name and meaning on both sides."""

REFUSED = (
    "frequency_penalty",
    "min_p",
    "logit_bias",
    "ignore_eos",
    "min_tokens",
    "priority",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)

PART_HINTS = ("min_pixels", "max_pixels", "total_pixels", "fps", "cache_control")


def chat_body(request: ChatRequest, model: str, *, multimodal: bool) -> dict[str, Any]:
    """The native request. ``multimodal`` is about the service: there every content is a list of parts.

    Raises `UnsupportedError` for what DashScope lacks.
    """
    for field in REFUSED:
        if getattr(request, field) is not None:
            raise UnsupportedError(f'DashScope has no "{field}"', param=field)
    parameters: dict[str, Any] = {"result_format": "message", "incremental_output": True}
    parameters |= {name: value for name in SAME if (value := getattr(request, name)) is not None}
    if request.top_k is not None and request.top_k > 0:  # Ours has -1 and 0 for "all", which is the default there.
        parameters["top_k"] = request.top_k
    if (limit := request.max_completion_tokens or request.max_tokens) is not None:
        parameters["max_tokens"] = limit
    if request.stop is not None and request.stop_token_ids:
        raise UnsupportedError('DashScope takes "stop" or "stop_token_ids", not both', param="stop_token_ids")
    if (stop := request.stop or request.stop_token_ids) is not None:
        parameters["stop"] = stop
    if request.response_format is not None:
        parameters["response_format"] = request.response_format.model_dump(exclude_unset=True)
    if request.tools:
        parameters["tools"] = [tool.model_dump(exclude_unset=True) for tool in request.tools]
        if request.tool_choice == "required":
            raise UnsupportedError('DashScope can be made to call one function, not "required"', param="tool_choice")
        if isinstance(request.tool_choice, str):
            parameters["tool_choice"] = request.tool_choice
        elif request.tool_choice is not None:
            parameters["tool_choice"] = request.tool_choice.model_dump(exclude_unset=True)
    messages = [_message(message, number, multimodal) for number, message in enumerate(request.messages)]
    return {"model": model, "input": {"messages": messages}, "parameters": (request.model_extra or {}) | parameters}


def needs_multimodal(request: ChatRequest) -> bool:
    """Whether a message holds something other than text."""
    return any(
        part.type != "text"
        for message in request.messages
        if isinstance(message.content, list)
        for part in message.content
    )


def _message(message: ChatMessage, number: int, multimodal: bool) -> dict[str, Any]:
    native = message.model_dump(exclude_unset=True)
    if message.role == "developer":
        native["role"] = "system"
    if isinstance(message.content, list):
        parts = [
            native_part(part, f"messages[{number}].content[{place}]") for place, part in enumerate(message.content)
        ]
        plain = not multimodal and all(set(part) == {"text"} for part in parts)
        native["content"] = "".join(part["text"] for part in parts) if plain else parts
    elif multimodal:
        native["content"] = [{"text": message.content}] if message.content else []
    elif message.content is None:
        native["content"] = ""
    return native


def native_part(part: ContentPart, param: str) -> dict[str, Any]:
    """Raises `UnsupportedError` for a kind of part that DashScope does not know, `BadRequestError` for a broken one."""
    extra = part.model_extra or {}
    hints = {name: extra[name] for name in PART_HINTS if name in extra}
    match part.type:
        case "text":
            return {"text": part.text} | hints
        case "image_url":
            return {"image": _url(extra, "image_url", param)} | hints
        case "video_url":
            return {"video": _url(extra, "video_url", param)} | hints
        case "video" if isinstance(extra.get("video"), list):
            return {"video": extra["video"]} | hints
        case "input_audio":
            audio = extra.get("input_audio")
            if not isinstance(audio, dict) or not isinstance(data := audio.get("data"), str):
                raise BadRequestError(f'"{param}.input_audio.data" is missing', param=param)
            if not data.startswith(("http:", "https:", "data:")):
                data = f"data:audio/{audio.get('format', 'wav')};base64,{data}"
            return {"audio": data} | hints
    raise UnsupportedError(f'DashScope takes no parts of type "{part.type[:40]}"', param=f"{param}.type")


def _url(extra: dict[str, Any], field: str, param: str) -> str:
    value = extra.get(field)
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str):
        raise BadRequestError(f'"{param}.{field}.url" is missing', param=param)
    return url


# --- back ---------------------------------------------------------------------------------------------------------

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}


def choices_of(output: dict[str, Any]) -> list[ChunkChoice]:
    """What an event adds. ``finish_reason`` is the text "null" while there is more to come.

    Raises ValueError for what is not DashScope's.
    """
    if output.get("choices") is None and isinstance(output.get("text"), str):  # A model that knows only "text".
        output = {"choices": [{"finish_reason": output.get("finish_reason"), "message": {"content": output["text"]}}]}
    return [_choice(choice, place) for place, choice in enumerate(output.get("choices") or [])]


def _choice(choice: Any, place: int) -> ChunkChoice:
    if not isinstance(choice, dict) or not isinstance(message := choice.get("message") or {}, dict):
        raise ValueError("a choice without a message")
    reason = choice.get("finish_reason")
    logprobs = choice.get("logprobs")
    return ChunkChoice(
        index=choice.get("index", place),
        delta=Delta(
            content=_text(message.get("content")) or None,
            reasoning_content=message.get("reasoning_content") or None,
            tool_calls=[_call(call, place) for place, call in enumerate(message.get("tool_calls") or [])] or None,
        ),
        logprobs=ChoiceLogprobs.model_validate(logprobs) if logprobs else None,
        finish_reason=FINISH_REASONS.get(reason, "stop") if reason and reason != "null" else None,
    )


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return content or ""


def _call(call: Any, place: int) -> dict[str, Any]:
    """A fragment of a call. Later ones of DashScope's repeat the id, or have it as ""; ours have none."""
    if not isinstance(call, dict) or not isinstance(function := call.get("function") or {}, dict):
        raise ValueError("a tool call that is none")
    fragment: dict[str, Any] = {"index": call.get("index", place)}
    fragment["function"] = {"arguments": function.get("arguments") or ""}
    if function.get("name"):
        fragment |= {"id": call.get("id") or "", "type": "function"}
        fragment["function"]["name"] = function["name"]
    return fragment


def usage_of(usage: dict[str, Any]) -> Usage:
    """DashScope's ``input_tokens`` include the cached ones, as OpenAI's do. Details of its own are kept."""
    prompt, completion = usage.get("input_tokens") or 0, usage.get("output_tokens") or 0
    told: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": usage.get("total_tokens") or prompt + completion,
    }
    inputs = {name: value for name, value in (usage.get("input_tokens_details") or {}).items() if value is not None}
    inputs |= usage.get("prompt_tokens_details") or {}
    if cached := inputs.get("cached_tokens") or usage.get("cached_tokens"):
        inputs["cached_tokens"] = cached
    if written := inputs.get("cache_creation_input_tokens"):
        inputs["cache_write_tokens"] = written
    if inputs:
        told["prompt_tokens_details"] = inputs
    if outputs := usage.get("output_tokens_details"):
        told["completion_tokens_details"] = outputs
    return Usage.model_validate(told)
