"""Reading an answer that is still being written: a parser that can stop anywhere and go on when more text comes.

A parser is a generator: it takes what it wants from a `Cursor`, emits events, and yields when the text it has is not
enough to decide. So each format's parser is written as if the text were there, and yields the same events however the
text is cut into pieces.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from wootz.tokenization.tool_formats.grammar import Tool

Result = TypeVar("Result")
Steps: TypeAlias = Generator[None, None, Result]


@dataclass(frozen=True)
class Text:
    """A part of what the answer says."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """A part of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call of this function begins. ``id`` is the model's own, where its format writes one before the arguments."""

    name: str
    id: str | None = None


@dataclass(frozen=True)
class Arguments:
    """The next part of the JSON text of the call's arguments."""

    text: str


@dataclass(frozen=True)
class CallEnd:
    """The call is complete, its arguments a JSON object."""

    id: str | None = None


@dataclass(frozen=True)
class CallBroken:
    """The call that was begun is not one: the text ended in it, or went on in another way."""


Event: TypeAlias = Text | Reasoning | CallStart | Arguments | CallEnd | CallBroken


class Broken(Exception):
    """Inside a parser: the text is not what it began as."""


class Cursor:
    """The text that is not read yet, and the events that are not given out yet.

    With ``eager``, a call's events are given out as they come: right where a grammar makes sure that the call will be
    whole. Without, they are held until it is, and what turns out to be no call is text again.
    """

    def __init__(self, tools: Mapping[str, Tool], *, eager: bool) -> None:
        self.tools, self.eager = tools, eager
        self.held = ""
        self.ended = self.block_was_whole = False
        self.events: list[Event] = []
        self._block_start: int | None = None
        self._taken = ""
        self._begun = self._call_is_open = False
        self._space = self._space_before = ""
        self._drop_space = False

    # --- reading ----------------------------------------------------------------------------------------------

    def take(self, count: int) -> str:
        piece, self.held = self.held[:count], self.held[count:]
        self._taken += piece
        return piece

    def some(self) -> Steps[bool]:
        """Whether there is at least one more character."""
        while not self.held and not self.ended:
            yield
        return bool(self.held)

    def space(self) -> Steps[None]:
        """Skip white space."""
        while (yield from self.some()) and self.held[0].isspace():
            self.take(len(self.held) - len(self.held.lstrip()))

    def literal(self, *texts: str, or_end: bool = False) -> Steps[str]:
        """Take that one of ``texts`` which comes next, the longest first. Raises `Broken` if none does; at the end of
        the text, ``or_end`` is content with nothing."""
        texts = tuple(sorted(texts, key=len, reverse=True))
        while True:
            open = [text for text in texts if text.startswith(self.held)] if not self.ended else []
            found = next((text for text in texts if self.held.startswith(text)), None)
            if found is not None and not any(len(text) > len(found) for text in open):
                return self.take(len(found))
            if not open:
                if or_end and self.ended:
                    return self.take(len(self.held)) and ""
                raise Broken(f"expected {' or '.join(texts)}")
            yield

    def until(self, *texts: str) -> Steps[tuple[str, str]]:
        """What stands before the first of ``texts``, and that text, both taken. Raises `Broken` if there is none."""
        while True:
            found = _first(self.held, texts)
            if found is not None:
                at, text = found
                return self.take(at), self.take(len(text))
            if self.ended:
                raise Broken(f"expected {' or '.join(texts)}")
            yield

    def say_until(self, kind: type[Text] | type[Reasoning], *texts: str) -> Steps[str | None]:
        """Give out what stands before the first of ``texts`` as it comes, and take that text; None if there is none."""
        while True:
            found = _first(self.held, texts)
            if found is not None:
                at, text = found
                self.say(kind, self.take(at))
                return self.take(len(text))
            if self.ended:
                self.say(kind, self.take(len(self.held)))
                return None
            self.say(kind, self.take(len(self.held) - _num_undecided(self.held, texts)))
            yield

    def end(self) -> Steps[None]:
        """Nothing more comes, but for white space and end tokens that are spelled out. Raises `Broken`."""
        while not self.ended:
            if re.match(r"\s*[^\s<]", self.held):
                break
            yield
        if not re.fullmatch(r"\s*(<[^<>]*>\s*)*", self.held):
            raise Broken("expected the end")
        self.take(len(self.held))

    # --- writing ----------------------------------------------------------------------------------------------

    def emit(self, event: Event) -> None:
        self._begun = self._begun or isinstance(event, CallStart)
        self._call_is_open = isinstance(event, CallStart | Arguments)
        self.events.append(event)

    def say(self, kind: type[Text] | type[Reasoning], text: str) -> None:
        """White space at the end is kept back: next to a call, or around the thoughts, it is the format's."""
        text = self._space + text
        if self._drop_space:
            text = text.lstrip()
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._drop_space = False
            self.emit(kind(shown))

    def drop_space(self) -> None:
        """Forget the white space before this place, and after it."""
        self._space, self._drop_space = "", True

    def finish(self) -> None:
        if self._space and not self._drop_space:
            self.emit(Text(self._space))
        self._space = ""

    # --- a block that may turn out to be none -------------------------------------------------------------------

    def begin_block(self, trigger: str) -> None:
        self._taken, self._block_start, self._begun = trigger, len(self.events), False
        self._space_before, self._space = self._space, ""

    def end_block(self) -> None:
        self._block_start, self.block_was_whole = None, True
        self.drop_space()

    def break_block(self) -> None:
        """What was read in the block is text after all; if a part of it was given out as a call, that is broken off."""
        start, self._block_start, self.block_was_whole = self._block_start or 0, None, False
        if self.eager and self._begun:
            if self._call_is_open:
                self.emit(CallBroken())
            self.drop_space()
            return
        del self.events[start:]
        self._call_is_open, self._space = False, self._space_before
        self.say(Text, self._taken[:1])
        self.held = self._taken[1:] + self.held

    def take_events(self) -> list[Event]:
        """All that may be given out now."""
        count = len(self.events) if self.eager or self._block_start is None else self._block_start
        events, self.events = self.events[:count], self.events[count:]
        if self._block_start is not None:
            self._block_start = max(0, self._block_start - count)
        return events


def _first(text: str, wanted: tuple[str, ...]) -> tuple[int, str] | None:
    found = [(at, -len(one), one) for one in wanted if (at := text.find(one)) >= 0]
    if not found:
        return None
    at, _, one = min(found)
    return at, one


def _num_undecided(text: str, wanted: tuple[str, ...]) -> int:
    """Length of the longest ending of ``text`` that begins one of the wanted."""
    longest = max(map(len, wanted), default=1)
    for length in range(min(longest - 1, len(text)), 0, -1):
        if any(one.startswith(text[-length:]) for one in wanted):
            return length
    return 0
