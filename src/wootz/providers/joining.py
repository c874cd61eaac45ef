"""Events of plain text joined into one, to be one chunk on their way through the house.

A streamed answer comes in one event a token, and making a chunk of each costs more than all else on a request's way.
So the text of those that follow each other is put together before. Where somebody reads along, only what came together
is, so that nothing waits for what is yet to come, and only events that differ in nothing but their text, and the last
in how it ended: whoever writes the chunk out makes the same events of its pieces again. Where nobody does, that holds
for the first text alone, for
whoever waits for a sign of life; then some `MOST` go on together, so that an answer that is given up is counted to
about that many tokens.

Most events of a stream are one text, character by character, but for the piece they bring. What stands around it is
compared, and only the piece is read as JSON: a tenth of the work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

MOST = 32
MOST_FORMS = 4
"""An endpoint whose every event is another (padding against eavesdroppers) is not tried for ever."""

_TEXTS = msgspec.json.Decoder(list[str])
_spelled = msgspec.json.Encoder().encode
_CHOICE = {"index", "delta", "finish_reason", "logprobs"}
_DELTA = {"role", "content"}


class Joiner:
    """Takes events in their order, as they were sent, and gives them back fewer; ``read`` makes an event of its JSON.
    What is more than a piece of text goes on as it is."""

    def __init__(self, read: Callable[[str], dict[str, Any]], *, whole: bool) -> None:
        self._read = read
        self._whole = whole
        self._has_begun = False
        self._event: dict[str, Any] = {}
        self._pieces: list[str] = []
        """Of text, that go on together as the first one's event."""
        self._form: _Form | None = None
        self._num_forms = 0

    def add(self, batch: Sequence[str]) -> Iterator[dict[str, Any]]:
        """What may go on when these have come, and nothing more is there for now."""
        position, form = 0, self._form
        while position < len(batch):
            if form is not None and batch[position].startswith(form.head):
                if texts := form.texts_of(batch, position):
                    yield from self._join(form.event, texts)
                    position += len(texts)
                    continue
                form = None  # One of them is none, so that each of this batch is read.
            data = batch[position]
            event = self._read(data)
            text, ends = _said(event)
            if text and not ends:
                yield from self._join(event, [text])
                if not (self._whole or self._has_begun):  # The others need not be looked at for it.
                    self._has_begun = True
                    yield from self.rest()
            elif ends and self._pieces and (self._whole or _is_end_of(event, self._event)):
                self._pieces.append(text)
                self._event = _ended(self._event, event)
                yield from self.rest()
            else:
                yield from self.rest()
                yield event
            if text and not ends and self._num_forms < MOST_FORMS:
                self._num_forms += 1
                form = self._form = _Form.of(data, event, text)
            position += 1
        if len(self._pieces) >= MOST or not (self._whole and self._has_begun):
            self._has_begun = self._has_begun or bool(self._pieces)
            yield from self.rest()

    def _join(self, event: dict[str, Any], texts: list[str]) -> Sequence[dict[str, Any]]:
        """With what it can't be joined with goes on before."""
        before = () if self._whole or event is self._event else self.rest()
        self._event = self._event if self._pieces else event
        self._pieces += texts
        return before

    def rest(self) -> Sequence[dict[str, Any]]:
        """What waits to be joined."""
        if not (pieces := self._pieces):
            return ()
        self._pieces = []
        return (_with_text(self._event, "".join(pieces)) | {"pieces": pieces},)


@dataclass(frozen=True, slots=True)
class _Form:
    """An event's JSON before and after its piece of text."""

    event: dict[str, Any]
    head: str
    tail: str

    @classmethod
    def of(cls, data: str, event: dict[str, Any], text: str) -> _Form | None:
        """None where the piece is not to be found for certain: another one in its place must make the same event."""
        for spelled in (_spelled(text).decode(), json.dumps(text)):
            for key in ('"content":', '"content": '):
                head, found, tail = data.partition(key + spelled)
                # Where nothing is escaped, these are the only places that could be called so.
                if found and '"content"' not in head and '"content"' not in tail and "\\" not in head + tail:
                    return cls(event, head + key, tail)
        return None

    def texts_of(self, batch: Sequence[str], position: int) -> list[str]:
        """Of the events from there on that are of this form; nothing where one of them is not."""
        head, tail, end = self.head, self.tail, len(batch)
        while not (batch[end - 1].startswith(head) and batch[end - 1].endswith(tail)):
            end -= 1  # The last ones tell how it ended.
            if end == position:
                return []
        events = batch[position:end]
        pieces = [data[len(head) : -len(tail)] for data in events]
        if head + (tail + "\n" + head).join(pieces) + tail != "\n".join(events):
            return []
        try:
            texts = _TEXTS.decode(f"[{','.join(pieces)}]")
        except ValueError:
            return []
        # A piece may have been several texts, or half a list: then there is another number, or something else.
        return texts if len(texts) == len(pieces) and "" not in texts else []


def _is_end_of(event: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether it says as that one does, but that it ends, with another text or with nothing."""
    (choice,), (other,) = event["choices"], before["choices"]
    delta, said = choice["delta"], other["delta"]
    if delta and (not delta.get("content") or delta | {"content": said["content"]} != said):
        return False
    return event | {"choices": [choice | {"delta": said, "finish_reason": None}]} == before


def _ended(before: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    """That one, and how it ended."""
    (choice,), (said,) = event["choices"], before["choices"]
    return before | event | {"choices": [said | choice | {"delta": said["delta"] | choice["delta"]}]}


def _with_text(event: dict[str, Any], text: str) -> dict[str, Any]:
    (choice,) = event["choices"]
    return event | {"choices": [choice | {"delta": choice["delta"] | {"content": text}}]}


def _said(event: dict[str, Any]) -> tuple[str, bool]:
    """The piece of the first choice's text that the event is, and whether that ends with it; nothing of an event that
    says more."""
    nothing, choices = ("", False), event.get("choices")
    if event.get("usage") or not isinstance(choices, list) or len(choices) != 1:
        return nothing
    choice = choices[0]
    if not isinstance(choice, dict) or not choice.keys() <= _CHOICE:
        return nothing
    delta = choice.get("delta")
    if choice.get("index") != 0 or choice.get("logprobs") or not isinstance(delta, dict) or not delta.keys() <= _DELTA:
        return nothing
    text = delta.get("content")
    return text if isinstance(text, str) else "", bool(choice.get("finish_reason"))
