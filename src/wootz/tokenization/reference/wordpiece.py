"""WordPiece: the longest piece that fits, from the front (Schuster & Nakajima 2012; BERT, arXiv 1810.04805).

Inside of a word pieces begin with "##". Training as published merges the pair that raises the likelihood of the corpus
most, which is the one with the highest ``count(ab) / (count(a) * count(b))``: not the most frequent pair but the one
whose parts are least often apart. The `tokenizers` library does not do that; its trainer is BPE's, by frequency.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction
from itertools import pairwise


def wordpiece_encode(
    word: str, vocabulary: Collection[str], *, unknown: str = "[UNK]", longest: int = 100
) -> list[str]:
    """Pieces of one word. Where no piece fits the whole word is unknown, as is one of more than ``longest`` characters:
    greed never takes back a piece."""
    if len(word) > longest:
        return [unknown]
    pieces, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in vocabulary), None)
        if end is None:
            return [unknown]
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


def train_wordpiece(words: Mapping[str, int] | Iterable[str], vocab_size: int, *, by: str = "likelihood") -> list[str]:
    """The vocabulary: characters in order, then pieces as they were made. ``by`` is "likelihood" or "frequency". Of
    equal pairs the first in the alphabet wins. Counts are taken anew for each merge, which is slow and plain."""
    counts = words if isinstance(words, Mapping) else Counter(words)
    split = {word: [word[0], *(f"##{character}" for character in word[1:])] for word in counts if word}
    vocabulary = dict.fromkeys(sorted({piece for pieces in split.values() for piece in pieces}))
    while len(vocabulary) < vocab_size:
        single: Counter[str] = Counter()
        double: Counter[tuple[str, str]] = Counter()
        for word, pieces in split.items():
            for piece in pieces:
                single[piece] += counts[word]
            for pair in pairwise(pieces):
                double[pair] += counts[word]
        if not double:
            break

        def score(pair: tuple[str, str], single: Counter[str] = single, double: Counter[tuple[str, str]] = double):
            return Fraction(double[pair], single[pair[0]] * single[pair[1]]) if by == "likelihood" else double[pair]

        left, right = min(double, key=lambda pair: (-score(pair), pair))
        joined = left + right.removeprefix("##")
        vocabulary[joined] = None
        for word, pieces in split.items():
            merged: list[str] = []
            for piece in pieces:
                if merged and (merged[-1], piece) == (left, right):
                    merged[-1] = joined
                else:
                    merged.append(piece)
            split[word] = merged
    return [*vocabulary]
