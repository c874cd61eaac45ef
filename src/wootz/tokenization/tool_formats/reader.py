"""`AnswerReader`: what a model writes, as what it says, what it thinks, and the tools it calls, while it writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, TypeAlias

from wootz.tokenization.tool_formats.base import ParsedCall, ToolFormat
from wootz.tokenization.tool_formats.cursor import (
    Arguments,
    CallBroken,
    CallEnd,
    CallStart,
    Cursor,
    Event,
    Reasoning,
    Steps,
    Text,
)
from wootz.tokenization.tool_formats.grammar import Tool

THINK, THINK_END = "<think>", "</think>"

Thinking: TypeAlias = Literal["none", "may", "begun"]
"""Whether an answer has thoughts in ``<think>`` before it: it may begin with some, or is in the midst of them (the
prompt wrote the tag)."""


class AnswerReader:
    """Text in, events out. ``eager`` gives a call out while it is written, which is right under a grammar only."""

    def __init__(
        self,
        format: ToolFormat | None,
        tools: Sequence[Tool] = (),
        *,
        thinking: Thinking = "none",
        eager: bool = True,
    ) -> None:
        self._cursor = Cursor({tool.name: tool for tool in tools}, eager=eager)
        self._steps = _answer(self._cursor, format, thinking)
        self._go_on()

    def push(self, text: str) -> list[Event]:
        self._cursor.held += text
        self._go_on()
        return self._cursor.take_events()

    def finish(self) -> list[Event]:
        """The rest, once the text has ended; a call that is not complete comes out as `CallBroken`."""
        self._cursor.ended = True
        self._go_on()
        self._cursor.finish()
        return self._cursor.take_events()

    def _go_on(self) -> None:
        next(self._steps, None)


def _answer(cursor: Cursor, format: ToolFormat | None, thinking: Thinking) -> Steps[None]:
    if thinking != "none":
        if thinking == "may":
            yield from cursor.space()
            while THINK.startswith(cursor.held[: len(THINK)]) and len(cursor.held) < len(THINK) and not cursor.ended:
                yield
        if thinking == "begun" or cursor.held.startswith(THINK):
            cursor.take(len(THINK) if cursor.held.startswith(THINK) else 0)
            cursor.drop_space()
            yield from cursor.say_until(Reasoning, THINK_END)
            cursor.drop_space()
    if format is not None:
        yield from format.read(cursor)
    yield from cursor.say_until(Text)


def parse_tool_calls(text: str, format: ToolFormat) -> tuple[str, list[ParsedCall]]:
    """A whole answer's text without its calls, and the calls in order.

    What does not parse as a call stays text, unaltered: a model that answers about JSON has not called anything, and a
    broken call must be seen by whoever retries it. A marker that is a special token has to be in the text, so decode
    with ``skip_special_tokens=False``.
    """
    reader = AnswerReader(format, eager=False)
    events = reader.push(text) + reader.finish()
    calls = collect_calls(events)
    return (said(events).strip(), calls) if calls else (text, [])


def collect_calls(events: Sequence[Event]) -> list[ParsedCall]:
    """The calls that are complete."""
    calls: list[ParsedCall] = []
    start, parts = CallStart(""), []
    for event in events:
        match event:
            case CallStart():
                start, parts = event, []
            case Arguments(text):
                parts.append(text)
            case CallEnd(id):
                calls.append(ParsedCall(start.name, json.loads("".join(parts)), id or start.id))
            case CallBroken() | Text() | Reasoning():
                pass
    return calls


def said(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))
