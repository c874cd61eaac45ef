"""DeepSeek: a section of calls between special tokens, by the chat templates of V3 and R1, and of V3.1.

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Bern"}<｜tool▁call▁end｜>…

V3 writes the kind of tool before the separator, and the name and a fenced block of JSON after it.
"""

from __future__ import annotations

from collections.abc import Sequence

from wootz.tokenization.tool_formats.base import ParsedCall, ToolFormat, any_of, dump, one_or_more
from wootz.tokenization.tool_formats.cursor import CallEnd, CallStart, Cursor, Steps
from wootz.tokenization.tool_formats.grammar import Grammar, Tool
from wootz.tokenization.tool_formats.json_text import arguments

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


class DeepSeek31(ToolFormat):
    name = "deepseek_v3.1"
    trigger = CALLS
    markers = (CALLS_END, CALL, CALL_END, SEPARATOR)
    before_name, before_arguments, after, between = "", SEPARATOR, "", ""

    def body(self, grammar: Grammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        calls = [
            grammar.literal(CALL + self.before_name + tool.name + self.before_arguments)
            + f" {grammar.json(tool.schema)} "
            + grammar.literal(self.after + CALL_END)
            for tool in tools
        ]
        grammar.rule("call", any_of(calls))
        several = one_or_more(grammar, "call", self.between, parallel=parallel) if self.between else "call+"
        return f"{several if parallel else 'call'} {grammar.literal(CALLS_END)}"

    def calls(self, cursor: Cursor) -> Steps[None]:
        while True:
            yield from cursor.space()
            if (yield from cursor.literal(CALL, CALLS_END, or_end=True)) != CALL:
                return
            yield from cursor.literal(self.before_name)
            name, _ = yield from cursor.until(self.before_arguments)
            cursor.emit(CallStart(name.strip()))
            yield from arguments(cursor)
            cursor.emit(CallEnd())
            yield from cursor.literal(self.after, or_end=True)
            yield from cursor.literal(CALL_END, or_end=True)

    def write(self, calls: Sequence[ParsedCall]) -> str:
        written = (
            f"{CALL}{self.before_name}{call.name}{self.before_arguments}{dump(call.arguments)}{self.after}{CALL_END}"
            for call in calls
        )
        return CALLS + self.between.join(written) + CALLS_END


class DeepSeek3(DeepSeek31):
    name = "deepseek_v3"
    before_name, before_arguments, after, between = f"function{SEPARATOR}", "\n```json\n", "\n```", "\n"
