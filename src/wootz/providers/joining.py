"""Events of plain text joined into one, for a caller who wants the answer whole.

A streamed answer comes in one event a token, and making a chunk of each costs more than all else on a request's way.
Where nobody reads along, the text of those that follow each other is put together before. The first text goes on as it
is, for whoever waits for a sign of life; then at most `MOST` together, so that an answer that is given up is counted to
about that many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST = 16

_CHOICE = {"index", "delta", "finish_reason", "logprobs"}
_DELTA = {"role", "content"}


class Joiner:
    """Takes events in their order and gives them back fewer, if the answer is wanted ``whole``. What is more than a
    piece of text goes on as it is."""

    def __init__(self, *, whole: bool) -> None:
        self._passing = not whole
        self._has_text = False
        self._joined: dict[str, Any] | None = None

    def add(self, event: dict[str, Any]) -> Sequence[dict[str, Any]]:
        """What may go on now."""
        if self._passing:
            return (event,)
        text = _text_of(event)
        if not text or not self._has_text:
            self._has_text = self._has_text or bool(text)
            return (*self.rest(), event)
        if self._joined is None:
            (choice,) = event["choices"]
            self._joined = event | {"num_parts": 1, "choices": [choice | {"delta": dict(choice["delta"])}]}
            return ()
        self._joined["choices"][0]["delta"]["content"] += text
        self._joined["num_parts"] += 1
        return self.rest() if self._joined["num_parts"] >= MOST else ()

    def rest(self) -> Sequence[dict[str, Any]]:
        """What waits to be joined."""
        joined, self._joined = self._joined, None
        return () if joined is None else (joined,)


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
