"""The long text that needles are hidden in: generated essays, RULER's repeated noise, or a file of the user's.

The usual haystack, Paul Graham's essays, isn't ours to ship, and a model may know it by heart. So essays are made up
from a seed: plain English sentences that no training set holds, without a digit in them (so no number is ever an answer
by chance).
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from wootz.core import BadRequestError
from wootz.evals.long_context.words import ADJECTIVES, NOUNS

PADDING = " so"
"""One token in every byte-pair vocabulary we know; fills the last gap that no whole word fits."""

NOISE = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
"""RULER's `repeat` haystack, after passkey retrieval (Mohtashami and Jaggi 2023)."""


class Haystack:
    """Endless sentences, cut to any number of words. Needles go between sentences."""

    def __init__(self, sentences: Iterator[str]) -> None:
        self._source = sentences
        self._sentences: list[str] = []
        self._ends: list[int] = []
        """Words up to and with each sentence."""

    def text(
        self, num_words: int, needles: Sequence[str] = (), depths: Sequence[float] = (), *, padding: int = 0
    ) -> str:
        """The first ``num_words`` words and ``padding`` filler tokens, each needle after the share of the sentences
        that its depth says: 0 is before the first, 1 behind the last."""
        while not self._ends or self._ends[-1] < num_words:
            sentence = next(self._source)
            self._sentences.append(sentence)
            self._ends.append((self._ends[-1] if self._ends else 0) + len(sentence.split()))
        last = bisect_left(self._ends, num_words)
        cut = self._sentences[: last + 1]
        if cut:
            spare = self._ends[last] - num_words
            words = cut[-1].split()
            cut[-1] = " ".join(words[: len(words) - spare]) + PADDING * padding
        placed = sorted(zip(depths, needles, strict=True), key=lambda pair: pair[0])
        parts, before = [], 0
        for depth, needle in placed:
            place = self._boundary(round(depth * num_words), num_words, len(cut))
            parts += [*cut[before:place], needle]
            before = place
        return " ".join(part for part in [*parts, *cut[before:]] if part)

    def _boundary(self, word: int, num_words: int, num_sentences: int) -> int:
        """How many sentences lie before the boundary nearest to ``word``."""
        after = min(bisect_left(self._ends, word) + 1, num_sentences) if word else 0
        starts = [self._ends[after - 2] if after > 1 else 0, min(self._ends[after - 1], num_words)] if after else [0, 0]
        return after - 1 if after and word - starts[0] < starts[1] - word else after

    def sentences(self) -> Iterator[str]:
        """Its source, for a text that begins otherwise."""
        return self._source


HaystackMaker = Callable[[Random], Haystack]


def noise(rng: Random) -> Haystack:
    return Haystack(itertools.cycle(NOISE))


def essays(rng: Random) -> Haystack:
    return Haystack(_essay_sentences(rng))


def from_file(file: Path) -> HaystackMaker:
    """The user's own text, begun at a random sentence and over again at its end."""
    try:
        text = file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise BadRequestError(f"haystack {file} can't be read ({reason})") from None
    sentences = [sentence for sentence in re.split(r"(?<=[.!?])\s+", text.strip()) if sentence]
    if not sentences:
        raise BadRequestError(f"haystack {file} is empty")

    def make(rng: Random) -> Haystack:
        start = rng.randrange(len(sentences))
        return Haystack(itertools.cycle(sentences[start:] + sentences[:start]))

    return make


def scattered(rng: Random, count: int) -> list[float]:
    """Depths for ``count`` needles, in ascending order: RULER draws them from 40 evenly spaced ones."""
    steps = max(40, count)
    return sorted(step / (steps - 1) for step in rng.sample(range(steps), count))


_OPENINGS = (
    "Most people", "Few of us", "In the old town, everybody", "The careful reader", "My grandmother", "A good teacher",
    "Any traveller", "The people of the valley", "Whoever has time", "Nobody in the office", "The keeper",
)  # fmt: skip
_VERBS = (
    "would trade", "remembers", "overlooks", "praises", "has never trusted", "likes to compare", "can describe",
    "keeps returning to", "was slow to forgive", "still believes in", "laughs about", "learns to live with",
)  # fmt: skip
_LINKS = (
    "because", "although", "even when", "as soon as", "so that", "while", "unless", "and yet", "long after",
)  # fmt: skip
_ENDINGS = (
    "the weather changes", "nobody asks for it", "the work is done", "it costs a little more", "the evening is quiet",
    "others call it a waste", "there is nothing to win by it", "the neighbours disagree", "a habit is hard to break",
    "the first attempt fails", "the road is long", "it takes patience", "that seems unfair", "the market closes",
)  # fmt: skip
_ASIDES = (
    "I used to think otherwise.", "That is the whole secret.", "It is worth saying twice.", "Nothing more is needed.",
    "There are exceptions, of course.", "One gets used to it.", "This is easy to say and hard to do.",
)  # fmt: skip


def _essay_sentences(rng: Random) -> Iterator[str]:
    while True:
        if rng.random() < 0.15:
            yield rng.choice(_ASIDES)
            continue
        one, other = (f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}" for _ in range(2))
        opening, verb, link, ending = map(rng.choice, (_OPENINGS, _VERBS, _LINKS, _ENDINGS))
        yield rng.choice(
            (
                f"{opening} {verb} {one}, {link} {ending}.",
                f"{opening} {verb} {one} and {other}, {link} {ending}.",
                f"{link.capitalize()} {ending}, {one} matters more than {other}.",
                f"What {one} has in common with {other} is hard to see {link} {ending}.",
            )
        )
