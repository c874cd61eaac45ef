"""Prompt lookup: what followed last time will follow again (LLMA, arXiv 2304.04487).

The text's last tokens are looked up in the text itself; what stood behind their latest occurrence is the draft. It
costs nothing, and is right where an answer repeats its prompt: summaries, edits, code, structured data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import Tensor

from wootz.engine.attention import PagedCache, PagedContext
from wootz.engine.runner import Model
from wootz.engine.scheduler import Chunk
from wootz.engine.sequence import Sequence
from wootz.engine.speculation.draft import Draft
from wootz.models.context import CacheSpec

LONGEST, SHORTEST = 4, 2
"""Tokens that must agree. The longest match there is decides; a single token says too little."""


@dataclass
class Index:
    """Where each run of tokens last ended, for all but the text's own end."""

    places: dict[tuple[int, ...], int] = field(default_factory=dict)
    num_indexed: int = 0

    def lookup(self, token_ids: list[int]) -> int | None:
        """The place behind the latest earlier occurrence of the text's end."""
        for end in range(self.num_indexed + 1, len(token_ids)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self.places[tuple(token_ids[end - length : end])] = end
        self.num_indexed = len(token_ids) - 1
        lengths = range(min(LONGEST, len(token_ids)), SHORTEST - 1, -1)
        return next((place for n in lengths if (place := self.places.get(tuple(token_ids[-n:])))), None)


class PromptLookup:
    cost, depth = 0.0, None
    cache_specs: tuple[CacheSpec, ...] = ()

    def __init__(self) -> None:
        self._indexes: WeakKeyDictionary[Sequence, Index] = WeakKeyDictionary()

    def attach(self, model: Model, cache: PagedCache, first_slot: int) -> None:
        """It keeps nothing there."""

    def propose(self, sequences: list[Sequence], limits: list[int]) -> list[Draft | None]:
        return [self._continue(sequence, limit) for sequence, limit in zip(sequences, limits, strict=True)]

    def observe(self, chunks: list[Chunk], hidden_TD: Tensor, context: PagedContext) -> None:
        """It reads tokens only."""

    def _continue(self, sequence: Sequence, limit: int) -> Draft | None:
        place = self._indexes.setdefault(sequence, Index()).lookup(sequence.token_ids)
        if place is None:
            return None
        text = sequence.token_ids[place : place + limit]
        while len(text) < limit:  # the occurrence overlaps the end: the text is periodic, and goes on so
            text.append(text[-(len(sequence.token_ids) - place)])
        return Draft.chain(text)
