"""Hermes and Qwen: each call a JSON object in tags (https://github.com/NousResearch/Hermes-Function-Calling).

<tool_call>
{"name": "weather", "arguments": {"city": "Zürich"}}
</tool_call>
"""

from __future__ import annotations

from collections.abc import Sequence

from wootz.tokenization.tool_formats.base import ParsedCall, ToolFormat, dump, json_calls, one_or_more
from wootz.tokenization.tool_formats.cursor import Cursor, Steps
from wootz.tokenization.tool_formats.grammar import Grammar, Tool
from wootz.tokenization.tool_formats.json_text import json_call

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Hermes(ToolFormat):
    name = "hermes"
    trigger = OPEN
    markers = (CLOSE,)

    def body(self, grammar: Grammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        grammar.rule("object", json_calls(grammar, tools, '\n{"name": ', ', "arguments": '))
        grammar.rule("call", "object " + grammar.literal("}\n" + CLOSE))
        return one_or_more(grammar, "call", "\n" + OPEN, parallel=parallel)

    def calls(self, cursor: Cursor) -> Steps[None]:
        yield from cursor.space()
        yield from json_call(cursor)
        yield from cursor.space()
        yield from cursor.literal(CLOSE, or_end=True)

    def write(self, calls: Sequence[ParsedCall]) -> str:
        return "\n".join(
            f'{OPEN}\n{{"name": {dump(call.name)}, "arguments": {dump(call.arguments)}}}\n{CLOSE}' for call in calls
        )
