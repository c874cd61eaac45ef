"""Heuristics that tell prose from debris: how long, of what words, how repetitive. And which language it is.

Each rule is a few figures of a text against limits. The limits are those of MassiveText (Rae et al., arXiv 2112.11446,
table A1), which FineWeb and Dolma kept; for code and for languages without stop words of English switch rules off by
moving their limits. A document is dropped by the first rule it breaks, and the report counts which.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from wootz.core.errors import ConfigError

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_BULLETS = ("•", "‣", "-", "*", "·", "–")
_WORD = re.compile(r"\w", re.UNICODE)


@dataclass(frozen=True, kw_only=True)
class Heuristics:
    """Limits; a share is of words, lines or characters as its name says."""

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3.0
    max_mean_word_length: float = 10.0
    max_symbols_per_word: float = 0.1
    """Of ``#`` and of ellipses, each."""
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    """Share of words with a letter in them."""
    min_stop_words: int = 2
    """Of different ones; English."""
    max_duplicate_lines: float = 0.3
    max_duplicate_line_characters: float = 0.2
    max_duplicate_paragraphs: float = 0.3
    max_duplicate_paragraph_characters: float = 0.2
    max_top_ngram_characters: tuple[float, ...] = (0.20, 0.18, 0.16)
    """Share of characters in the most frequent 2-, 3- and 4-gram of words."""
    max_duplicate_ngram_characters: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Share of characters in 5- to 10-grams that occur before."""

    def reason_to_drop(self, text: str) -> str | None:
        """The rule that the text breaks, or None."""
        words = text.split()
        num_words, num_characters = len(words), sum(map(len, words))
        if num_words < self.min_words:
            return "too short"
        if num_words > self.max_words:
            return "too long"
        if not self.min_mean_word_length <= num_characters / max(1, num_words) <= self.max_mean_word_length:
            return "word length"
        symbols = max(text.count("#"), text.count("...") + text.count("…"))
        if symbols / max(1, num_words) > self.max_symbols_per_word:
            return "symbols"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if sum(line.startswith(_BULLETS) for line in lines) > self.max_bullet_lines * len(lines):
            return "bullets"
        if sum(line.endswith(("...", "…")) for line in lines) > self.max_ellipsis_lines * len(lines):
            return "ellipses"
        if sum(any(map(str.isalpha, word)) for word in words) < self.min_alphabetic_words * num_words:
            return "not words"
        if self.min_stop_words and len(STOP_WORDS.intersection(map(str.lower, words))) < self.min_stop_words:
            return "stop words"
        return self._repetition(text, lines, words, num_characters)

    def _repetition(self, text: str, lines: list[str], words: list[str], num_characters: int) -> str | None:
        paragraphs = [part.strip() for part in re.split(r"\n{2,}", text) if part.strip()]
        for name, parts, most, most_characters in (
            ("line", lines, self.max_duplicate_lines, self.max_duplicate_line_characters),
            ("paragraph", paragraphs, self.max_duplicate_paragraphs, self.max_duplicate_paragraph_characters),
        ):
            share, characters = _duplicates(parts)
            if share > most or characters / max(1, len(text)) > most_characters:
                return f"repeated {name}s"
        for n, most in enumerate(self.max_top_ngram_characters, 2):
            ngrams = Counter(zip(*(words[k:] for k in range(n)), strict=False))
            top, times = max(ngrams.items(), key=lambda item: (item[1], sum(map(len, item[0]))), default=((), 0))
            if times > 1 and times * sum(map(len, top)) > most * num_characters:
                return f"repeated {n}-grams"
        for n, most in enumerate(self.max_duplicate_ngram_characters, 5):
            if _characters_in_repeats(words, n) > most * num_characters:
                return f"repeated {n}-grams"
        return None


def _duplicates(parts: Sequence[str]) -> tuple[float, int]:
    """The share of parts that occurred before, and how many characters they have."""
    seen: set[str] = set()
    again = 0
    characters = 0
    for part in parts:
        if part in seen:
            again += 1
            characters += len(part)
        seen.add(part)
    return again / max(1, len(parts)), characters


def _characters_in_repeats(words: list[str], n: int) -> int:
    """Characters of words in n-grams that occurred before; each word counts once."""
    seen: set[tuple[str, ...]] = set()
    characters, covered = 0, 0
    for start, ngram in enumerate(zip(*(words[k:] for k in range(n)), strict=False)):
        if ngram in seen:
            characters += sum(map(len, words[max(start, covered) : start + n]))
            covered = start + n
        seen.add(ngram)
    return characters


@dataclass(frozen=True, kw_only=True)
class Languages:
    """Which languages are kept, by their ISO 639-1 codes, and how sure one has to be. ``split`` makes a source of its
    own for each of them (``web.de``), so that the mixture can weigh them and quality be looked at in each."""

    keep: tuple[str, ...] = ("en",)
    min_probability: float = 0.65
    split: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.keep) - set(known_languages())
        if unknown:
            raise ConfigError(f"{', '.join(sorted(unknown))}: no language known here", hint="use codes such as en, zh")


def language(text: str) -> tuple[str, float]:
    """The likeliest language of a text and its probability, by character n-grams (py3langid). The first 2,000
    characters tell; of a text without letters nothing does."""
    sample = text[:2000]
    if not _WORD.search(sample):
        return "und", 0.0
    code, probability = _identifier().classify(sample)
    return str(code), float(probability)


def known_languages() -> list[str]:
    return [str(label) for label in _identifier().labels]


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
