"""How many tokens a text takes: the figures by which tokenizers are compared, and lengths planned.

Tokens per word ("fertility") and bytes per token measure the same from two sides. Words are what stands between white
space, so scripts without spaces have none, and only characters and bytes can be compared there. As no token of a
byte-level BPE reaches over the cut into words, and every word with a letter is at least one piece of that cut, tokens
per word cannot be below one; tables that say so have counted something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from wootz.core.errors import BadRequestError
from wootz.tokenization.tokenizer import Tokenizer

# Thai, Lao, Tibetan, Burmese, Khmer; kana, Han and their extensions.
_WITHOUT_SPACES = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")
_MOSTLY = 0.3


@dataclass(frozen=True)
class Fertility:
    """Sums over texts. ``num_words`` is None for writing without spaces."""

    num_texts: int
    num_tokens: int
    num_words: int | None
    num_characters: int
    num_bytes: int
    num_unknown: int
    """Tokens that stand for text which the vocabulary cannot spell."""
    num_exact: int
    """Texts that decode to exactly what they were."""

    @property
    def tokens_per_word(self) -> float | None:
        return self.num_tokens / self.num_words if self.num_words else None

    @property
    def tokens_per_character(self) -> Fraction:
        return Fraction(self.num_tokens, max(self.num_characters, 1))

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / max(self.num_tokens, 1)

    @property
    def unknown_rate(self) -> float:
        return self.num_unknown / max(self.num_tokens, 1)

    @property
    def round_trip_rate(self) -> float:
        return self.num_exact / max(self.num_texts, 1)


def measure(tokenizer: Tokenizer, texts: Iterable[str]) -> Fertility:
    """Texts are taken as text: a control token that is spelled out counts as what it is spelled with."""
    num_texts = num_tokens = num_words = num_characters = num_bytes = num_unknown = num_exact = spaceless = 0
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False, control="text")
        num_texts += 1
        num_tokens += len(ids)
        num_words += sum(any(map(str.isalnum, word)) for word in text.split())
        num_characters += len(text)
        num_bytes += len(text.encode())
        num_unknown += ids.count(tokenizer.unknown_id) if tokenizer.unknown_id is not None else 0
        num_exact += tokenizer.decode(ids, skip_special_tokens=False) == text
        spaceless += len(_WITHOUT_SPACES.findall(text))
    has_words = spaceless <= _MOSTLY * num_characters
    return Fertility(
        num_texts, num_tokens, num_words if has_words else None, num_characters, num_bytes, num_unknown, num_exact
    )


@dataclass(frozen=True)
class LengthBudget:
    """Characters into tokens and back, by measured ratios: ``max_tokens`` counts tokens, people count characters."""

    tokens_per_character: Mapping[str, Fraction]
    """By language or kind of text, as `measure` finds them."""

    def tokens(self, characters: int, language: str) -> int:
        """Tokens that a text of so many characters takes, rounded up."""
        return ceil(characters * self._ratio(language))

    def characters(self, tokens: int, language: str) -> int:
        """Characters that so many tokens hold, rounded down."""
        return floor(tokens / self._ratio(language))

    def check(self, max_tokens: int, wanted_characters: int, language: str) -> str | None:
        """What is wrong with ``max_tokens`` for an answer of so many characters, if anything is."""
        needed = self.tokens(wanted_characters, language)
        if max_tokens < needed:
            fits = self.characters(max_tokens, language)
            return (
                f"max_tokens {max_tokens} cuts the answer at about {fits} characters; {wanted_characters} take {needed}"
            )
        if max_tokens == wanted_characters and max_tokens >= 2 * needed:
            return (
                f"max_tokens {max_tokens} looks like a number of characters; {wanted_characters} take {needed} tokens"
            )
        return None

    def _ratio(self, language: str) -> Fraction:
        if language not in self.tokens_per_character:
            known = ", ".join(self.tokens_per_character)
            raise BadRequestError(f'no measured length for "{language}"', hint=f"there is {known}")
        return max(self.tokens_per_character[language], Fraction(1, 1000))
