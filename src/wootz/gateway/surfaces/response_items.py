"""The items of the Responses API as chat messages.

A conversation is a list of items there: messages, the model's thoughts, calls of functions, and their results. Calls
and thoughts become parts of the assistant's message that they belong to. Hosted tools' items, and references to items
that are kept elsewhere, are refused by name.

Source: https://platform.openai.com/docs/api-reference/responses/create, ``input``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from wootz.core import BadRequestError, UnsupportedError

Item = dict[str, Any]
Message = dict[str, Any]


def items_of(given: str | list[Item]) -> list[Item]:
    return [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given


def to_messages(items: Iterable[tuple[str, Item]]) -> tuple[list[Message], list[str]]:
    """The messages, and of each the place of its (first) item. Items come with their place, such as ``input[0]``.

    Raises `BadRequestError` for an item that is malformed, `UnsupportedError` for one of a kind we don't have.
    """
    messages: list[Message] = []
    origins: list[str] = []

    def assistant() -> Message:
        """The assistant's message that is being put together."""
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
            origins.append(where)
        return messages[-1]

    for where, item in items:
        match item.get("type", "message" if "role" in item else None):
            case "message":
                message = _message(item, where)
                if message["role"] == "assistant" and _is_only_thought(messages):
                    messages[-1]["content"] = message["content"]
                else:
                    messages.append(message)
                    origins.append(where)
            case "reasoning":
                if messages and messages[-1]["role"] == "assistant":  # It opens the next message.
                    messages.append({"role": "assistant", "content": None})
                    origins.append(where)
                assistant()["reasoning_content"] = _thoughts(item, where)
            case "function_call":
                call = {
                    "id": _text(item, "call_id", where),
                    "type": "function",
                    "function": {"name": _text(item, "name", where), "arguments": _text(item, "arguments", where)},
                }
                assistant().setdefault("tool_calls", []).append(call)
            case "function_call_output":
                id, output = _text(item, "call_id", where), item.get("output")
                content = _content(output, f"{where}.output", _INPUT_PARTS)
                messages.append({"role": "tool", "tool_call_id": id, "content": content})
                origins.append(where)
            case None:
                raise BadRequestError("missing required parameter", code="missing_required_parameter", param=where)
            case kind:
                raise UnsupportedError(f'an item of type "{str(kind)[:60]}" is not supported', param=f"{where}.type")
    kept = [
        (message, origin)
        for message, origin in zip(messages, origins, strict=True)
        if message["content"] is not None or message.get("tool_calls")
    ]  # Thoughts that led to nothing (their answer was cut off) are no message.
    return [message for message, _ in kept], [origin for _, origin in kept]


def _is_only_thought(messages: list[Message]) -> bool:
    last = messages[-1] if messages else {}
    return last.get("content", "") is None and "reasoning_content" in last and "tool_calls" not in last


def _message(item: Item, where: str) -> Message:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise BadRequestError(
            'a message\'s role is "user", "assistant", "system" or "developer"', param=f"{where}.role"
        )
    parts = _OUTPUT_PARTS if role == "assistant" else _INPUT_PARTS
    return {"role": role, "content": _content(item.get("content"), f"{where}.content", parts)}


def _thoughts(item: Item, where: str) -> str:
    parts = [*(item.get("content") or ()), *(item.get("summary") or ())]
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise BadRequestError("thoughts are parts with a text", param=f"{where}.summary")
    return "\n\n".join(part["text"] for part in item.get("content") or item.get("summary") or ())


def _content(content: Any, where: str, kinds: dict[str, Callable[[Item, str], Item]]) -> str | list[Item]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise BadRequestError(f'invalid type for "{where}": expected a string or an array of parts', param=where)
    parts = []
    for number, part in enumerate(content):
        place = f"{where}[{number}]"
        if (read := kinds.get(part.get("type", ""))) is None:
            kind = str(part.get("type"))[:60]
            raise UnsupportedError(f'a part of type "{kind}" is not supported here', param=f"{place}.type")
        parts.append(read(part, place))
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts) if parts else ""
    return parts


def _text(item: Item, field: str, where: str) -> str:
    if not isinstance(value := item.get(field), str):
        param = f"{where}.{field}"
        raise BadRequestError(f'"{param}" must be a string', code="invalid_type", param=param)
    return value


def _text_part(part: Item, where: str) -> Item:
    return {"type": "text", "text": _text(part, "text", where)}


def _refusal_part(part: Item, where: str) -> Item:
    return {"type": "text", "text": _text(part, "refusal", where)}


def _image_part(part: Item, where: str) -> Item:
    if part.get("file_id"):
        raise UnsupportedError("images are read from a URL (also data:), not from a file", param=f"{where}.file_id")
    image = {"url": _text(part, "image_url", where)}
    if part.get("detail"):
        image["detail"] = _text(part, "detail", where)
    return {"type": "image_url", "image_url": image}


def _file_part(part: Item, where: str) -> Item:
    for field in ("file_id", "file_url"):
        if part.get(field):
            raise UnsupportedError("files are read from file_data only", param=f"{where}.{field}")
    file = {"file_data": _text(part, "file_data", where)}
    return {"type": "file", "file": file | {k: part[k] for k in ("filename",) if part.get(k)}}


def _audio_part(part: Item, where: str) -> Item:
    return {"type": "input_audio", "input_audio": part.get("input_audio")}


_INPUT_PARTS: dict[str, Callable[[Item, str], Item]] = {
    "input_text": _text_part,
    "text": _text_part,
    "output_text": _text_part,
    "input_image": _image_part,
    "input_file": _file_part,
    "input_audio": _audio_part,
}
_OUTPUT_PARTS: dict[str, Callable[[Item, str], Item]] = {
    "output_text": _text_part,
    "input_text": _text_part,
    "refusal": _refusal_part,
}
