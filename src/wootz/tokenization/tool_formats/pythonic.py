"""Calls as Python: Llama 3.2 and 4 as a list that is the whole answer, Gemma in a fence.

[weather(city="Zürich", days=3)]              Pythonic

```tool_code                                  Gemma
weather(city="Zürich", days=3)
```
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wootz.tokenization.tool_formats.base import ParsedCall, ToolFormat, any_of, dump, joined
from wootz.tokenization.tool_formats.cursor import Broken, Cursor, Steps
from wootz.tokenization.tool_formats.grammar import Grammar, Tool, escape
from wootz.tokenization.tool_formats.parameters import KeyedCall, parameters

_NAME = re.compile(r"[\w.:/-]*")


class Pythonic(ToolFormat):
    name = "pythonic"
    trigger = "["
    only_first = True
    separator, close = ", ", "]"

    def body(self, grammar: Grammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        def one(name: str, schema: Mapping[str, Any]) -> str:
            return joined([grammar.literal(f"{name}="), f"({_value(grammar, schema)})"])

        inside = [f'{parameters(grammar, f"tool_{n}", tool, one, ", ")} ")"' for n, tool in enumerate(tools)]
        for rule, before in (("first", self.trigger if self.only_first else ""), ("next", self.separator)):
            begun = [grammar.literal(f"{before}{tool.name}(") for tool in tools]
            grammar.rule(rule, any_of([joined(call) for call in zip(begun, inside, strict=True)]))
        return joined(["first next*" if parallel else "first", grammar.literal(self.close)])

    def beginning(self, tools: Sequence[Tool]) -> str:
        return rf"[ \n]*\[[ \n]*({'|'.join(escape(tool.name) for tool in tools)})\("

    def calls(self, cursor: Cursor) -> Steps[None]:
        if self.only_first:
            yield from cursor.literal(self.trigger)
        while True:
            yield from cursor.space()
            name = yield from _name(cursor, "(")
            call = KeyedCall(cursor, name)
            yield from cursor.space()
            while (yield from cursor.some()) and cursor.held[0] != ")":
                key = yield from _name(cursor, "=")
                call.argument(key, (yield from _python_value(cursor)))
                yield from cursor.space()
                if (yield from cursor.some()) and cursor.held[0] == ",":
                    cursor.take(1)
                    yield from cursor.space()
            yield from cursor.literal(")")
            call.end()
            yield from cursor.space()
            if (yield from cursor.some()) and not self.close.strip().startswith(cursor.held[0]):
                if self.separator.strip():
                    yield from cursor.literal(self.separator.strip())
            else:
                break
        yield from cursor.literal(self.close.strip(), or_end=True)

    def write(self, calls: Sequence[ParsedCall]) -> str:
        opening, closing = self.trigger, self.close
        return opening + self.separator.join(_written(call) for call in calls) + closing


class Gemma(Pythonic):
    name = "gemma"
    trigger = "```tool_code\n"
    only_first = False
    separator, close = "\n", "\n```"

    def result(self, content: str) -> str:
        return f"```tool_output\n{content}\n```"


def _value(grammar: Grammar, schema: Mapping[str, Any]) -> str:
    if schema.get("type") == "boolean" and not schema.keys() & {"enum", "const"}:
        return '"True" | "False"'
    return grammar.json(schema)


def _written(call: ParsedCall) -> str:
    return f"{call.name}({', '.join(f'{key}={_python(value)}' for key, value in call.arguments.items())})"


def _python(value: Any) -> str:
    """JSON, but for a truth value that is an argument of its own: what the grammar allows."""
    return repr(value) if isinstance(value, bool) else dump(value)


def _name(cursor: Cursor, end: str) -> Steps[str]:
    while True:
        found = _NAME.match(cursor.held)
        length = found.end() if found else 0
        if length < len(cursor.held) or cursor.ended:
            break
        yield
    name = cursor.take(length)
    yield from cursor.space()
    yield from cursor.literal(end)
    if not name:
        raise Broken("expected a name")
    return name


def _python_value(cursor: Cursor) -> Steps[Any]:
    """A literal of Python or JSON, up to the comma or bracket that ends it."""
    text, depth, quote, escaped = "", 0, "", False
    while (yield from cursor.some()):
        character = cursor.held[0]
        if quote:
            quote = quote if escaped or character != quote else ""
            escaped = character == "\\" and not escaped
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif depth == 0 and character in ",)":
            break
        elif character in "]})":
            depth -= 1
        text += cursor.take(1)
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        names = {"true": "True", "false": "False", "null": "None"}
        return ast.literal_eval(re.sub(r"\b(true|false|null)\b", lambda match: names[match[0]], text.strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise Broken("not a literal") from None
