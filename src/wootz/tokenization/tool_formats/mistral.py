"""Mistral, by the two spellings its tokenizers know (https://github.com/mistralai/mistral-common).

[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Zürich"}}]        Mistral
[TOOL_CALLS]weather[ARGS]{"city": "Zürich"}                               MistralArgs, since 2025
"""

from __future__ import annotations

from collections.abc import Sequence

from wootz.tokenization.tool_formats.base import ParsedCall, ToolFormat, any_of, dump, json_calls, one_or_more
from wootz.tokenization.tool_formats.cursor import CallEnd, CallStart, Cursor, Steps
from wootz.tokenization.tool_formats.grammar import Grammar, Tool
from wootz.tokenization.tool_formats.json_text import arguments, json_call

TRIGGER, ARGS = "[TOOL_CALLS]", "[ARGS]"


class Mistral(ToolFormat):
    name = "mistral"
    trigger = TRIGGER
    id_chars = 9

    def body(self, grammar: Grammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        grammar.rule("object", json_calls(grammar, tools, '{"name": ', ', "arguments": '))
        grammar.rule("call", 'object "}"')
        return f'" "? "[" {one_or_more(grammar, "call", ", ", parallel=parallel)} "]"'

    def calls(self, cursor: Cursor) -> Steps[None]:
        yield from cursor.space()
        yield from cursor.literal("[")
        while True:
            yield from cursor.space()
            yield from json_call(cursor)
            yield from cursor.space()
            if (yield from cursor.literal(",", "]")) == "]":
                break
        yield from cursor.end()

    def write(self, calls: Sequence[ParsedCall]) -> str:
        ids = [f', "id": {dump(call.id)}' if call.id else "" for call in calls]
        objects = (
            f'{{"name": {dump(call.name)}, "arguments": {dump(call.arguments)}{id}}}'
            for call, id in zip(calls, ids, strict=True)
        )
        return f"{TRIGGER}[{', '.join(objects)}]"


class MistralArgs(ToolFormat):
    name = "mistral_args"
    trigger = TRIGGER
    markers = (ARGS,)
    id_chars = 9

    def body(self, grammar: Grammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        grammar.rule(
            "call", any_of([f"{grammar.literal(tool.name + ARGS)} {grammar.json(tool.schema)}" for tool in tools])
        )
        return one_or_more(grammar, "call", TRIGGER, parallel=parallel)

    def calls(self, cursor: Cursor) -> Steps[None]:
        name, _ = yield from cursor.until(ARGS)
        cursor.emit(CallStart(name.strip()))
        yield from cursor.space()
        yield from arguments(cursor)
        cursor.emit(CallEnd())

    def write(self, calls: Sequence[ParsedCall]) -> str:
        return "".join(f"{TRIGGER}{call.name}{ARGS}{dump(call.arguments)}" for call in calls)
