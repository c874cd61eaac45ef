"""`SegmentCache`: the parts of a prompt that came before are not encoded again.

Chat prompts repeat: the system prompt in every conversation, each turn in every later request. Ids may only be joined
where encoding the parts is encoding the whole, and that is just before a control token: the library takes those out
of the text first, and what lies between them is encoded on its own. Any other seam is unsafe, since a merge or the
word cut's look-ahead may reach across it. (Just *after* a control token is unsafe too: SentencePiece may put its
space before the beginning of a text only, and a part that begins with a control token has none.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import tokenizers

from wootz.tokenization.special_tokens import token_pattern

MAX_SEGMENTS = 1024


class SegmentCache:
    """Ids of the last `MAX_SEGMENTS` different segments; the result always equals ``encode(text)``."""

    def __init__(
        self, backend: tokenizers.Tokenizer, control: frozenset[int], encode: Callable[[str], list[int]]
    ) -> None:
        added = backend.get_added_tokens_decoder()
        # Tokens that match after normalization, or that look at their surroundings, are no place to cut.
        self._pattern = token_pattern([token.content for token in added.values() if not token.normalized])
        self._cuts = {
            added[id].content
            for id in control
            if not (added[id].normalized or added[id].lstrip or added[id].single_word)
            and not added[id].content[:1].isspace()
        }
        self._encode_segment = lru_cache(MAX_SEGMENTS)(lambda segment: tuple(encode(segment)))

    def encode(self, text: str) -> list[int]:
        return [id for segment in self.split(text) for id in self._encode_segment(segment)]

    def split(self, text: str) -> Iterator[str]:
        """``text`` cut before each control token."""
        start = 0
        for match in self._pattern.finditer(text):
            if match[0] in self._cuts and match.start() > start:
                yield text[start : match.start()]
                start = match.start()
        if text[start:]:
            yield text[start:]

    def statistics(self) -> tuple[int, int]:
        """Segments taken from the cache, and segments encoded."""
        info = self._encode_segment.cache_info()
        return info.hits, info.misses
