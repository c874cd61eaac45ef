"""Qwen3-Coder: XML-like tags, so that a half-written call is easy to read. A string stands as it is, all else as JSON.

<tool_call>
<function=weather>
<parameter=city>
Zürich
</parameter>
</function>
</tool_call>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from wootz.tokenization.tool_formats.base import ParsedCall, ToolFormat, any_of, dump, joined, one_or_more
from wootz.tokenization.tool_formats.cursor import Cursor, Steps
from wootz.tokenization.tool_formats.grammar import Grammar, Tool
from wootz.tokenization.tool_formats.parameters import KeyedCall, parameters

OPEN, CLOSE, FUNCTION_END, PARAMETER_END = "<tool_call>", "</tool_call>", "</function>", "</parameter>"


class QwenXML(ToolFormat):
    name = "qwen_xml"
    trigger = OPEN
    markers = (CLOSE,)

    def body(self, grammar: Grammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        grammar.rule("string[lazy]", r"/(.|\n)*\n<\/parameter>/")

        def one(name: str, schema: Mapping[str, Any]) -> str:
            opening, closing = grammar.literal(f"<parameter={name}>\n"), grammar.literal(f"\n{PARAMETER_END}\n")
            if schema.get("type") != "string":
                return joined([opening, grammar.json(schema), closing])
            if "enum" in schema:
                return joined([opening, f"({any_of([dump(value) for value in schema['enum']])})", closing])
            return joined([opening, "string", grammar.literal("\n")])

        calls = []
        for number, tool in enumerate(tools):
            opening = grammar.literal(f"\n<function={tool.name}>\n")
            closing = grammar.literal(f"{FUNCTION_END}\n{CLOSE}")
            calls.append(joined([opening, parameters(grammar, f"tool_{number}", tool, one, ""), closing]))
        grammar.rule("call", any_of(calls))
        return one_or_more(grammar, "call", "\n" + OPEN, parallel=parallel)

    def calls(self, cursor: Cursor) -> Steps[None]:
        yield from cursor.space()
        yield from cursor.literal("<function=")
        name, _ = yield from cursor.until(">")
        tool = cursor.tools.get(name)
        call = KeyedCall(cursor, name)
        yield from cursor.space()
        while (yield from cursor.literal("<parameter=", FUNCTION_END)) != FUNCTION_END:
            key, _ = yield from cursor.until(">")
            value, _ = yield from cursor.until(PARAMETER_END)
            call.argument(key, _value(value.removeprefix("\n").removesuffix("\n"), tool, key))
            yield from cursor.space()
        call.end()
        yield from cursor.space()
        yield from cursor.literal(CLOSE, or_end=True)

    def write(self, calls: Sequence[ParsedCall]) -> str:
        return "\n".join(
            f"{OPEN}\n<function={call.name}>\n{_parameters(call)}{FUNCTION_END}\n{CLOSE}" for call in calls
        )


def _parameters(call: ParsedCall) -> str:
    texts = {key: value if isinstance(value, str) else dump(value) for key, value in call.arguments.items()}
    return "".join(f"<parameter={key}>\n{text}\n{PARAMETER_END}\n" for key, text in texts.items())


def _value(text: str, tool: Tool | None, name: str) -> Any:
    """What is said to be a string is one; of what nothing is known, JSON is JSON."""
    if tool is not None and (tool.properties.get(name) or {}).get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
