"""Tool calls as models write them: out of an answer's text, in the three styles in use.

The other direction, calls and results into a prompt, is the chat template's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

ToolCallStyle = Literal["tags", "mistral", "json"]
"""``<tool_call>{…}</tool_call>`` (Qwen, Hermes), ``[TOOL_CALLS][{…}, …]`` (Mistral), a bare object (Llama 3.1)."""

_TAGS = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"


@dataclass(frozen=True)
class ParsedCall:
    name: str
    arguments: dict[str, Any]
    id: str | None = None


def parse_tool_calls(text: str, style: ToolCallStyle) -> tuple[str, list[ParsedCall]]:
    """The answer's text without its calls, and the calls in order.

    What does not parse as a call stays text, unaltered: a model that answers about JSON has not called anything, and a
    broken call must be seen by whoever retries it. Mistral's marker is a special token, so decode with
    ``skip_special_tokens=False``.
    """
    match style:
        case "tags":
            calls: list[ParsedCall] = []

            def take(match: re.Match[str]) -> str:
                call = _call(_read(match[1]))
                calls.extend([call] if call else [])
                return "" if call else match[0]

            rest = _TAGS.sub(take, text)
            return (rest.strip() if calls else rest), calls
        case "mistral":
            before, marker, payload = text.partition(_MISTRAL)
            items = _read(payload) if marker else None
            calls = _all_calls(items if isinstance(items, list) else [])
            return (before.strip(), calls) if calls else (text, [])
        case "json":
            payload = _read(text)
            calls = _all_calls(payload if isinstance(payload, list) else [payload])
            return ("", calls) if calls else (text, [])


def _all_calls(items: list[Any]) -> list[ParsedCall]:
    """The calls, if all are."""
    calls = [call for item in items if (call := _call(item))]
    return calls if len(calls) == len(items) else []


def _call(value: Any) -> ParsedCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # some write the object as a string in the string, as OpenAI's wire does
        arguments = _read(arguments)
    return ParsedCall(value["name"], arguments, value.get("id")) if isinstance(arguments, dict) else None


def _read(text: str) -> Any:
    """The JSON value that ``text`` is, but for white space and end markers after it; None if it is none."""
    text = text.strip()
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return None
    rest = text[end:].strip()
    return value if not rest or re.fullmatch(r"(<[^<>]*>)+", rest) else None
