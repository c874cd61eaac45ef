"""Texts as sets of hashed n-grams of words: what near-duplicates, leaks and quality are all looked up by.

Two texts count as equal when they differ in case, punctuation, white space or compatibility forms alone (NFKC), so the
words are lower-cased runs of letters, marks and digits; a character of a script without spaces is a word of its own.

Everything is computed for many texts at once. The words of all of them lie in one buffer of code points, and the hash
of any stretch of it comes from a running polynomial hash h, in 64 bits with overflow: ``(h[end] - h[start]) ·
p^-start``. That is one pass for n-grams of any n (Karp and Rabin 1987), and a final mixing makes the bits look random.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

ALONE = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
         (0xF900, 0xFAFF), (0x20000, 0x323AF))  # fmt: skip
"""Scripts that write no spaces between words: Thai to Khmer, kana, Han, whose last characters are the last letters of
all."""
_SPACE, _ALONE = 0, 2  # and 1, in a word

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)
_CHARACTERS_AT_ONCE = 1 << 18
"""Of text hashed in one go: enough for NumPy, and little enough for a processor's cache."""


@dataclass(frozen=True)
class Shingles:
    """Hashed n-grams of several texts: those of text i are ``hashes[offsets[i] : offsets[i + 1]]``, as they come."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    def __getitem__(self, text: int) -> NDArray[np.uint64]:
        return self.hashes[self.offsets[text] : self.offsets[text + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1


def shingles(texts: Sequence[str], ngram: int, *, short: bool = True) -> Shingles:
    """Of each text the hashes of its runs of ``ngram`` words. A text with fewer words is one run, unless not
    ``short``; a text without any has none."""
    parts = [_hashed(chunk, ngram, short) for chunk in _chunks(texts)]
    sizes = np.concatenate([np.zeros(1, np.int64), *(sizes for _, sizes in parts)])
    return Shingles(np.concatenate([np.empty(0, np.uint64), *(hashes for hashes, _ in parts)]), np.cumsum(sizes))


def num_words(texts: Sequence[str]) -> NDArray[np.int64]:
    """How many words each text has."""
    return np.diff(shingles(texts, 1).offsets)


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start, size = 0, 0
    for place, text in enumerate(texts):
        size += len(text)
        if size > _CHARACTERS_AT_ONCE:
            yield texts[start : place + 1]
            start, size = place + 1, 0
    if start < len(texts):
        yield texts[start:]


def _words(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """The words of all texts as code points with a space after each, where those spaces are, and how many words each
    text has."""
    joined = "".join((text.replace("\0", " ") if "\0" in text else text) + "\0" for text in texts)
    if not joined.isascii():
        joined = unicodedata.normalize("NFKC", joined)
    points_N = np.frombuffer(joined.lower().encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds_N = _kinds()[points_N]
    if (alone := np.flatnonzero(kinds_N == _ALONE)).size:
        around = np.concatenate([alone, alone + 1])
        points_N, kinds_N = np.insert(points_N, around, ord(" ")), np.insert(kinds_N, around, _SPACE)
    in_word = kinds_N != _SPACE
    after_word = np.append(False, in_word[:-1]) & ~in_word
    words = np.diff(np.searchsorted(np.flatnonzero(after_word), np.flatnonzero(points_N == 0), side="right"), prepend=0)
    # However wide a gap is, and of what, one space of it is kept.
    kept = in_word | after_word
    return np.where(in_word, points_N, np.uint32(ord(" ")))[kept], np.flatnonzero(after_word[kept]), words


def _hashed(texts: Sequence[str], ngram: int, short: bool) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    points_N, ends, words = _words(texts)
    starts = np.append(0, ends + 1)
    first_word = np.cumsum(words) - words
    runs = np.maximum(words - ngram + 1, (words > 0) if short else 0)
    # Run k of a text starts at its word k; its last word is n - 1 further on, or the text's last one.
    text_of_run = np.repeat(np.arange(len(texts)), runs)
    start_word = np.arange(len(text_of_run)) - np.repeat(np.cumsum(runs) - runs, runs) + first_word[text_of_run]
    end_word = np.minimum(start_word + ngram, (first_word + words)[text_of_run]) - 1
    begin, end = starts[start_word], ends[end_word]
    powers, inverses = _powers(len(points_N))
    running = np.append(np.uint64(0), np.cumsum((points_N + np.uint64(1)) * powers, dtype=np.uint64))
    return mixed((running[end] - running[begin]) * inverses[begin]), runs


@cache
def _kinds() -> NDArray[np.uint8]:
    """What every code point is."""
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    last_letter = ALONE[-1][1]
    kinds[: last_letter + 1] = [unicodedata.category(chr(point))[0] in "LMN" for point in range(last_letter + 1)]
    for first, last in ALONE:
        kinds[first : last + 1] *= _ALONE
    return kinds


@cache
def _tables(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of the base and of its inverse."""
    base, inverse = (
        np.cumprod(np.append(np.uint64(1), np.full(size - 1, factor, np.uint64)), dtype=np.uint64)
        for factor in (_BASE, _INVERSE)
    )
    return base, inverse


def _powers(length: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    powers, inverses = _tables(max(4 * _CHARACTERS_AT_ONCE, 1 << length.bit_length()))
    return powers[:length], inverses[:length]


def mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: every bit of a hash depends on every bit of it."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))
