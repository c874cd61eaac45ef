"""What a model may say, for every surface to tell: thoughts, text, calls of tools."""

from __future__ import annotations

from wootz.core.wire import Delta

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def thought(text: str) -> Delta:
    return Delta(reasoning_content=text)


def call(index: int, id: str, name: str, *arguments: str) -> list[Delta]:
    """A call in fragments, as they stream."""
    head = {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [{"index": index, "function": {"arguments": text}} for text in arguments]
    return [Delta(tool_calls=[fragment]) for fragment in (head, *rest)]
