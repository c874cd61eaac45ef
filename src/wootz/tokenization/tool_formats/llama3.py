"""Llama 3.1 and later: the answer *is* the call, a bare object; several are parted by semicolons
(https://github.com/meta-llama/llama-models, prompt_format.md). An answer that begins like a call has to be one.

    {"name": "weather", "parameters": {"city": "Zürich"}}
"""

from __future__ import annotations

from collections.abc import Sequence

from wootz.tokenization.tool_formats.base import ParsedCall, ToolFormat, dump, json_calls, one_or_more
from wootz.tokenization.tool_formats.cursor import Cursor, Steps
from wootz.tokenization.tool_formats.grammar import Grammar, Tool
from wootz.tokenization.tool_formats.json_text import json_call

PYTHON_TAG = "<|python_tag|>"


class Llama3(ToolFormat):
    name = "llama3"
    trigger = '{"name": '
    markers = (PYTHON_TAG,)
    only_first = True

    def body(self, grammar: Grammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        grammar.rule("object", json_calls(grammar, tools, self.trigger, ', "parameters": '))
        grammar.rule("call", 'object "}"')
        return one_or_more(grammar, "call", "; ", parallel=parallel)

    def start(self, grammar: Grammar, tools: Sequence[Tool], *, parallel: bool, content: str | None) -> str:
        start = super().start(grammar, tools, parallel=parallel, content=content)
        return f"{start} | {grammar.literal(PYTHON_TAG)} calls" if PYTHON_TAG in grammar.token_ids else start

    def beginning(self, tools: Sequence[Tool]) -> str:
        return r'[ \n]*\{[ \n]*"name"'

    def calls(self, cursor: Cursor) -> Steps[None]:
        if (yield from cursor.some()) and cursor.held[0] == "<":
            yield from cursor.literal(PYTHON_TAG)
        yield from cursor.space()
        if (yield from cursor.some()) and cursor.held[0] == "[":  # some write a list of them
            separators, close = (",", "]"), "]"
            yield from cursor.literal("[")
        else:
            separators, close = (";",), ""
        while True:
            yield from cursor.space()
            yield from json_call(cursor)
            yield from cursor.space()
            if not close and not cursor.held.startswith(";"):
                return
            if (yield from cursor.literal(*separators)) == close:
                return

    def write(self, calls: Sequence[ParsedCall]) -> str:
        return "; ".join(f'{{"name": {dump(call.name)}, "parameters": {dump(call.arguments)}}}' for call in calls)
