"""Events of plain text joined into one, for a caller who wants the answer whole.

A streamed answer comes in one event a token, and making a chunk of each costs more than all else on a request's way.
Where nobody reads along, the text of those that follow each other is put together before. The first text goes on as it
is, for whoever waits for a sign of life; then at most `MOST` together, so that an answer that is given up is counted to
about that many tokens.

Most events of a stream are one text, character by character, but for the piece they bring. What stands around it is
compared, and only the piece is read as JSON: a tenth of the work.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

MOST = 32
MOST_FORMS = 4
"""An endpoint whose every event is another (padding against eavesdroppers) is not tried for ever."""

_CHOICE = {"index", "delta", "finish_reason", "logprobs"}
_DELTA = {"role", "content"}


class Joiner:
    """Takes events in their order and gives them back fewer, if the answer is wanted ``whole``. What is more than a
    piece of text goes on as it is."""

    def __init__(self, *, whole: bool) -> None:
        self._passing = not whole
        self._has_text = False
        self._event: dict[str, Any] = {}
        self._pieces: list[str] = []
        """Of text, that go on together as the first one's event."""
        self._form: _Form | None = None
        self._num_forms = 0

    def add_unread(self, data: str) -> Sequence[dict[str, Any]] | None:
        """The same as `add` for an event that is an earlier one with another piece of text; None if it is not."""
        if self._form is None or not (text := self._form.text_of(data)):
            return None
        return self._join(self._form.event, text)

    def add(self, event: dict[str, Any], data: str = "") -> Sequence[dict[str, Any]]:
        """What may go on now. ``data`` is the event as it was read."""
        if self._passing:
            return (event,)
        text = _text_of(event)
        if not text or not self._has_text:
            self._has_text = self._has_text or bool(text)
            return (*self.rest(), event)
        if data and self._num_forms < MOST_FORMS:
            self._num_forms += 1
            self._form = _Form.of(data, event, text)
        return self._join(event, text)

    def _join(self, event: dict[str, Any], text: str) -> Sequence[dict[str, Any]]:
        self._event = self._event if self._pieces else event
        self._pieces.append(text)
        return self.rest() if len(self._pieces) >= MOST else ()

    def rest(self) -> Sequence[dict[str, Any]]:
        """What waits to be joined."""
        if not (pieces := self._pieces):
            return ()
        self._pieces = []
        return (_with_text(self._event, "".join(pieces)) | {"num_parts": len(pieces)},)


@dataclass(frozen=True, slots=True)
class _Form:
    """An event's JSON before and after its piece of text."""

    event: dict[str, Any]
    head: str
    tail: str

    @classmethod
    def of(cls, data: str, event: dict[str, Any], text: str) -> _Form | None:
        """None where the piece is not to be found for certain: another one in its place must make the same event."""
        for spelled in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
            head, _, tail = data.partition(spelled)
            if data.count(spelled) == 1 and from_json(f'{head}"?"{tail}') == _with_text(event, "?"):
                return cls(event, head, tail)
        return None

    def text_of(self, data: str) -> str | None:
        if not (data.startswith(self.head) and data.endswith(self.tail)):
            return None
        try:
            text = from_json(data[len(self.head) : len(data) - len(self.tail)])
        except ValueError:
            return None
        return text if isinstance(text, str) else None


def _with_text(event: dict[str, Any], text: str) -> dict[str, Any]:
    (choice,) = event["choices"]
    return event | {"choices": [choice | {"delta": choice["delta"] | {"content": text}}]}


def _text_of(event: dict[str, Any]) -> str:
    """The piece of the first choice's text that the event is, if it is no more than that; else nothing."""
    choices = event.get("choices")
    if event.get("usage") or not isinstance(choices, list) or len(choices) != 1:
        return ""
    choice = choices[0]
    if not isinstance(choice, dict) or not choice.keys() <= _CHOICE:
        return ""
    if choice.get("index") != 0 or choice.get("logprobs") or choice.get("finish_reason"):
        return ""
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) and delta.keys() <= _DELTA else None
    return text if isinstance(text, str) else ""
