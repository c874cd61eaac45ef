"""One choice's text, parted into what the model says, what it thinks, and the tools it calls, as it comes."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass, field
from typing import Any

import msgspec

from wootz.engine.protocol import ToolCallDelta
from wootz.tokenization.tool_formats import (
    AnswerReader,
    Arguments,
    CallBroken,
    CallEnd,
    CallStart,
    Event,
    Reasoning,
    Text,
)


@dataclass
class Parts:
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)


class AnswerStream:
    """``id_chars``: how long a call's id has to be, where the model's template insists on it."""

    def __init__(self, reader: AnswerReader, *, id_chars: int | None = None) -> None:
        self._reader, self._id_chars = reader, id_chars
        self.num_calls = 0
        self.is_broken = False
        """Whether the answer ended inside a call."""

    @property
    def has_called(self) -> bool:
        """Whether there are calls, and all are complete."""
        return self.num_calls > 0 and not self.is_broken

    def parts(self, text: str, *, over: bool) -> Parts:
        """What this text brings; ``over``: no more comes."""
        events = self._reader.push(text) if text else []
        return self._parts(events + self._reader.finish() if over else events)

    def _parts(self, events: list[Event]) -> Parts:
        parts = Parts()
        for event in events:
            match event:
                case Text(text):
                    parts.text += text
                case Reasoning(text):
                    parts.reasoning += text
                case CallStart(name, id):
                    self.num_calls += 1
                    self._add(parts, id=id or self._new_id(), name=name)
                case Arguments(text):
                    self._add(parts, arguments=text)
                case CallBroken():
                    self.is_broken = True
                    self._add(parts, incomplete=True)
                case CallEnd():
                    pass
        return parts

    def _add(self, parts: Parts, *, arguments: str = "", **fields: Any) -> None:
        """Of one call there is one delta at a time: OpenAI's client takes two for two calls."""
        calls = parts.tool_calls
        if calls and calls[-1].index == self.num_calls - 1:
            calls[-1] = msgspec.structs.replace(calls[-1], arguments=calls[-1].arguments + arguments, **fields)
        else:
            calls.append(ToolCallDelta(index=self.num_calls - 1, arguments=arguments, **fields))

    def _new_id(self) -> str:
        if self._id_chars is None:
            return f"call_{secrets.token_hex(12)}"
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(self._id_chars))
