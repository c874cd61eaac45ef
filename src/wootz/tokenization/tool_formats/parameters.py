"""Arguments that are written one by one under their names, rather than as one JSON object: the grammar of which may be
left out, and how they become JSON again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wootz.tokenization.tool_formats.base import dump, joined
from wootz.tokenization.tool_formats.cursor import Arguments, CallEnd, CallStart, Cursor
from wootz.tokenization.tool_formats.grammar import Grammar, Tool


def parameters(
    grammar: Grammar, prefix: str, tool: Tool, one: Callable[[str, Mapping[str, Any]], str], separator: str
) -> str:
    """The tool's parameters in the order of its schema, those that are not required possibly left out.

    Two rules for each place: what may follow when nothing stands before, and when something does.
    """
    shared = {key: tool.schema[key] for key in ("$defs", "definitions") if key in tool.schema}
    between = grammar.literal(separator) if separator else ""
    first = more = '""'
    for number, (name, schema) in reversed([*enumerate(tool.properties.items())]):
        schema = {**schema, **shared} if isinstance(schema, Mapping) else {}
        value = grammar.rule(f"{prefix}_{number}", one(name, schema))
        optional = name not in tool.required
        first_here = f"{value} {more}" + (f" | {first}" if optional else "")
        more_here = f"{joined([between, value])} {more}" + (f" | {more}" if optional else "")
        first = grammar.rule(f"{prefix}_{number}_first", first_here)
        more = grammar.rule(f"{prefix}_{number}_more", more_here)
    return first


class KeyedCall:
    """Gives out a call's arguments as the JSON object that they make, each as soon as it is known."""

    def __init__(self, cursor: Cursor, name: str) -> None:
        self.cursor, self._separator = cursor, ""
        cursor.emit(CallStart(name))
        cursor.emit(Arguments("{"))

    def argument(self, name: str, value: Any) -> None:
        self.cursor.emit(Arguments(f"{self._separator}{dump(name)}: {dump(value)}"))
        self._separator = ", "

    def end(self) -> None:
        self.cursor.emit(Arguments("}"))
        self.cursor.emit(CallEnd())
