"""ReAct: thought, action and observation as plain text (arXiv 2210.03629), for models that were trained for no format.

    Thought: I should look it up.
    Action: weather
    Action Input: {"city": "Zürich"}

One action at a time; the answer ends with it, and the observation is the next message.
"""

from __future__ import annotations

from collections.abc import Sequence

from wootz.tokenization.tool_formats.base import ParsedCall, ToolFormat, any_of, dump
from wootz.tokenization.tool_formats.cursor import CallEnd, CallStart, Cursor, Steps
from wootz.tokenization.tool_formats.grammar import Grammar, Tool
from wootz.tokenization.tool_formats.json_text import arguments

INPUT = "\nAction Input: "


class ReAct(ToolFormat):
    name = "react"
    trigger = "Action:"

    def body(self, grammar: Grammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        return any_of([f"{grammar.literal(f' {tool.name}{INPUT}')} {grammar.json(tool.schema)}" for tool in tools])

    def calls(self, cursor: Cursor) -> Steps[None]:
        name, _ = yield from cursor.until("\nAction Input:")
        cursor.emit(CallStart(name.strip()))
        yield from cursor.space()
        yield from arguments(cursor)
        cursor.emit(CallEnd())

    def write(self, calls: Sequence[ParsedCall]) -> str:
        return "\n".join(f"{self.trigger} {call.name}{INPUT}{dump(call.arguments)}" for call in calls)

    def result(self, content: str) -> str:
        return f"Observation: {content}"
