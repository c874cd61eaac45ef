"""`ToolFormat`: how one family of models writes tool calls, once for all that is done with it.

A format says what its calls look like as a grammar that constrains (`body`), as a parser that reads while the model
writes (`calls`), and as text for the conversation's history (`write`). The three stand side by side in one small file,
so that a call that is constrained is read right by construction.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from wootz.tokenization.tool_formats.cursor import Broken, Cursor, Steps, Text
from wootz.tokenization.tool_formats.grammar import Grammar, Tool, escape


@dataclass(frozen=True)
class ParsedCall:
    name: str
    arguments: dict[str, Any]
    id: str | None = None


class ToolFormat(ABC):
    name: ClassVar[str]
    trigger: ClassVar[str]
    """With this text, calls begin: from here on the answer is constrained. It may be a special token."""
    markers: ClassVar[tuple[str, ...]] = ()
    """Special tokens that the parser needs to see beside the trigger."""
    only_first: ClassVar[bool] = False
    """Whether calls stand only at the beginning of an answer."""
    id_chars: ClassVar[int | None] = None
    """Of a call's id, where the template insists on so many letters and digits."""

    @abstractmethod
    def body(self, grammar: Grammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        """What follows the trigger: one call, or with ``parallel`` one or more, as the body of a rule.

        With `only_first`, the trigger too, and all that `beginning` matches in the same literal: a lexeme that ends
        earlier than the free text beside it would never be chosen.
        """

    @abstractmethod
    def calls(self, cursor: Cursor) -> Steps[None]:
        """Read what follows the trigger; with `only_first`, the trigger too. Raises `Broken`."""

    @abstractmethod
    def write(self, calls: Sequence[ParsedCall]) -> str:
        """The calls as the model writes them."""

    def example(self) -> str:
        """What a model that was not trained for it is shown."""
        return self.write([ParsedCall("NAME", {"ARGUMENT": "VALUE"})])

    def result(self, content: str) -> str:
        """A tool's answer, for a template that has no place for one."""
        return f"<tool_response>\n{content}\n</tool_response>"

    def start(self, grammar: Grammar, tools: Sequence[Tool], *, parallel: bool, content: str | None) -> str:
        """The whole answer: calls, or else ``content`` (None: there must be a call)."""
        body = grammar.rule("calls", self.body(grammar, tools, parallel=parallel))
        called = body if self.only_first else f"{grammar.literal(self.trigger)} {body}"
        if content is None:
            return called
        if content != "TEXT":
            return f"{content} | {called}"
        if self.only_first:
            grammar.rule("PLAIN", rf"/(.|\n)*/ & ~/{self.beginning(tools)}(.|\n)*/")
            return f"PLAIN | {called}"
        return f"TEXT | {grammar.text_before('lead', self.trigger)} {body}"

    def beginning(self, tools: Sequence[Tool]) -> str:
        """A regex of what a text that is no call doesn't begin with, for formats whose calls come first."""
        return escape(self.trigger)

    def read(self, cursor: Cursor) -> Steps[None]:
        """The answer after its thoughts: text, and calls wherever the trigger is."""
        if self.only_first:
            yield from cursor.space()
            yield from self._block(cursor, "")
            yield from cursor.say_until(Text)
            return
        while (yield from cursor.say_until(Text, self.trigger)):
            yield from self._block(cursor, self.trigger)

    def _block(self, cursor: Cursor, trigger: str) -> Steps[None]:
        cursor.begin_block(trigger)
        try:
            yield from self.calls(cursor)
            if self.only_first:
                yield from cursor.end()
        except Broken:
            cursor.break_block()
        else:
            cursor.end_block()


def json_calls(grammar: Grammar, tools: Sequence[Tool], before: str, between: str) -> str:
    """For each tool its name as JSON after ``before``, and its arguments after ``between``; the body of a rule."""
    begun = [grammar.literal(before + dump(tool.name) + between) for tool in tools]
    return any_of([f"{text} {grammar.json(tool.schema)}" for text, tool in zip(begun, tools, strict=True)])


def one_or_more(grammar: Grammar, call: str, separator: str, *, parallel: bool) -> str:
    """One call, or several with a separator between."""
    return f"{call} ({grammar.literal(separator)} {call})*" if parallel else call


def any_of(alternatives: Sequence[str]) -> str:
    return " | ".join(alternatives)


def joined(parts: Iterable[str]) -> str:
    return " ".join(part for part in parts if part)


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
