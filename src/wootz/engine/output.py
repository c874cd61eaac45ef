"""Text of one choice, as it may be shown: whole characters only, and never any part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    """What turns tokens into text; `wootz.tokenization.StreamDecoder` is one."""

    def push(self, token_ids: Sequence[int]) -> str: ...
    def flush(self) -> str: ...


class NoText:
    """For a model without a tokenizer."""

    def push(self, token_ids: Sequence[int]) -> str:
        return ""

    def flush(self) -> str:
        return ""


class TextStream:
    """Tokens in, text out. Text that may be the beginning of a stop string is held back until that is known."""

    def __init__(self, decoder: Decoder, stop: tuple[str, ...] = ()) -> None:
        self.decoder, self.stop = decoder, stop
        self.held = ""
        self.stopped_by: str | None = None
        """The stop string that was found. Text before it has been given out; it and what follows never will be."""

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """New text to show. Until ``may_stop`` (``min_tokens``), stop strings are ordinary text."""
        self.held += self.decoder.push((token_id,))
        if not may_stop:
            return self._give(len(self.held))
        self._look_for_stop()
        return self._give(len(self.held) - self._num_undecided())

    def finish(self) -> str:
        """What was held back, at the end of the tokens."""
        if self.stopped_by is None:
            self.held += self.decoder.flush()
            self._look_for_stop()
        return self._give(len(self.held))

    def _look_for_stop(self) -> None:
        found = [(at, text) for text in self.stop if (at := self.held.find(text)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            self.held = self.held[:at]

    def _num_undecided(self) -> int:
        """Length of the longest ending of the held text that begins a stop string."""
        if self.stopped_by is not None:
            return 0
        longest = max((len(text) - 1 for text in self.stop), default=0)
        for length in range(min(longest, len(self.held)), 0, -1):
            if any(text.startswith(self.held[-length:]) for text in self.stop):
                return length
        return 0

    def _give(self, length: int) -> str:
        text, self.held = self.held[:length], self.held[length:]
        return text
