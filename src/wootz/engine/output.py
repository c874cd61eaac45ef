"""Text of one choice, as it may be shown: whole characters only, and never any part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wootz.tokenization import StopMatcher


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
        self.decoder, self._matcher = decoder, StopMatcher(stop)

    @property
    def stopped_by(self) -> str | None:
        """The stop string that was found. Text before it has been given out; it and what follows never will be."""
        return self._matcher.stopped_by

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """New text to show. Until ``may_stop`` (``min_tokens``), stop strings are ordinary text."""
        return self._matcher.push(self.decoder.push((token_id,)), may_stop=may_stop)

    def finish(self) -> str:
        """What was held back, at the end of the tokens."""
        return self._matcher.push(self.decoder.flush()) + self._matcher.finish()
