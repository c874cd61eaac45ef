"""Unigram: the segmentation that is likeliest, when pieces are drawn independently (Kudo, arXiv 1804.10959).

Training begins with far too many pieces and takes away those that the corpus misses least. In between, EM: given the
pieces' probabilities, how often each is expected over *all* segmentations of each word; given those expectations, new
probabilities. Encoding is Viterbi; and because every segmentation has a probability, one can also be drawn
(subword regularisation), here from the n best.

SentencePiece's trainer is the same in outline and not in detail: its seeds come from a suffix array, and it prunes by
an approximation with a Bayesian prior on the expected counts. So the test holds us to its *likelihood*, and encoding,
which has one right answer, to its ids.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

UNKNOWN_PENALTY = 10.0
"""An unknown character scores this much less than the least likely piece, as in SentencePiece."""


@dataclass(frozen=True)
class Unigram:
    """Natural log-probability of each piece."""

    scores: Mapping[str, float]

    def encode(self, word: str) -> list[str]:
        """The likeliest pieces of ``word`` (Viterbi); a character without a piece stands alone."""
        return self.n_best(word, 1)[0][1]

    def n_best(self, word: str, n: int) -> list[tuple[float, list[str]]]:
        """The ``n`` likeliest segmentations, best first, with their log-probabilities.

        ``best[end]`` holds the n best ways to write ``word[:end]``: each is one of the n best ways to an earlier place
        and one piece from there.
        """
        least = min(self.scores.values(), default=0.0) - UNKNOWN_PENALTY
        longest = max(map(len, self.scores), default=1)
        best: list[list[tuple[float, int, int]]] = [[(0.0, -1, 0)]]  # score, where the last piece starts, which way
        for end in range(1, len(word) + 1):
            ways = []
            for start in range(max(0, end - longest), end):
                score = self.scores.get(word[start:end], least if end - start == 1 else None)
                if score is not None:
                    ways += [(before + score, start, way) for way, (before, _, _) in enumerate(best[start])]
            best.append(heapq.nlargest(n, ways, key=lambda way: way[0]))
        found = []
        for score, start, way in best[-1]:
            pieces, end = [], len(word)
            while start >= 0:
                pieces.append(word[start:end])
                end = start
                _, start, way = best[end][way]
            found.append((score, pieces[::-1]))
        return found

    def sample(self, word: str, rng: random.Random, *, n: int = 64, temperature: float = 1.0) -> list[str]:
        """One of the ``n`` best, by its probability. A high ``temperature`` makes them equal, a low one
        takes the best."""
        ways = self.n_best(word, n)
        weights = [math.exp((score - ways[0][0]) / temperature) for score, _ in ways]
        return rng.choices([pieces for _, pieces in ways], weights)[0]

    def log_likelihood(self, word: str) -> float:
        """Of the word over all its segmentations, in nats."""
        return _forward(word, self.scores)[-1]


def train_unigram(
    words: Mapping[str, int] | Iterable[str],
    vocab_size: int,
    *,
    seed_size: int = 10_000,
    longest: int = 16,
    keep: float = 0.75,
    em_steps: int = 2,
) -> Unigram:
    """``vocab_size`` pieces; every character stays one, so that each word can be written. Each round is ``em_steps`` of
    EM, then the worst pieces go, until a share ``keep`` is left (or the size is reached)."""
    counts = words if isinstance(words, Mapping) else Counter(words)
    characters = {character for word in counts for character in word}
    scores = _seed(counts, characters, seed_size, longest)
    while True:
        for _ in range(em_steps):
            scores = _normalised(_expected_counts(counts, scores), characters)
        if len(scores) <= vocab_size:
            return Unigram(scores)
        scores = _prune(counts, scores, characters, max(vocab_size, int(keep * len(scores))))


def _seed(counts: Mapping[str, int], characters: set[str], size: int, longest: int) -> dict[str, float]:
    """All characters, and the substrings that cover most text (frequency times length) among those seen twice."""
    found: Counter[str] = Counter()
    for word, count in counts.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + longest) + 1):
                found[word[start:end]] += count
    longer = [piece for piece in found if len(piece) > 1 and found[piece] > 1]
    chosen = sorted(longer, key=lambda piece: (-found[piece] * len(piece), piece))[: max(0, size - len(characters))]
    return _normalised({piece: float(found[piece]) for piece in (*sorted(characters), *chosen)}, characters)


def _expected_counts(counts: Mapping[str, int], scores: Mapping[str, float]) -> dict[str, float]:
    """E step: how often each piece is expected in the corpus, over all segmentations (forward-backward)."""
    expected: dict[str, float] = dict.fromkeys(scores, 0.0)
    longest = max(map(len, scores))
    for word, count in counts.items():
        before = _forward(word, scores)
        after = _forward(word[::-1], {piece[::-1]: score for piece, score in _inside(word, scores, longest).items()})
        total = before[-1]
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + longest) + 1):
                piece = word[start:end]
                if piece in scores:
                    log = before[start] + scores[piece] + after[len(word) - end] - total
                    expected[piece] += count * math.exp(log)
    return expected


def _inside(word: str, scores: Mapping[str, float], longest: int) -> dict[str, float]:
    spans = ((a, b) for a in range(len(word)) for b in range(a + 1, min(len(word), a + longest) + 1))
    return {piece: scores[piece] for a, b in spans if (piece := word[a:b]) in scores}


def _forward(word: str, scores: Mapping[str, float]) -> list[float]:
    """Log-probability of each beginning of ``word``, over all its segmentations."""
    longest = max(map(len, scores))
    logs = [0.0]
    for end in range(1, len(word) + 1):
        ways = [
            logs[start] + scores[word[start:end]]
            for start in range(max(0, end - longest), end)
            if word[start:end] in scores
        ]
        top = max(ways, default=-math.inf)
        logs.append(top if top == -math.inf else top + math.log(sum(math.exp(way - top) for way in ways)))
    return logs


def _normalised(weights: Mapping[str, float], characters: set[str]) -> dict[str, float]:
    """M step: log-probabilities. A piece that nothing is expected of goes, unless it is a character."""
    kept = {piece: max(w, 1e-9) for piece, w in weights.items() if w > 1e-6 or piece in characters}
    total = math.log(sum(kept.values()))
    return {piece: math.log(weight) - total for piece, weight in kept.items()}


def _prune(counts: Mapping[str, int], scores: dict[str, float], characters: set[str], size: int) -> dict[str, float]:
    """Keeps the pieces whose loss would cost most: where Viterbi uses a piece, it would use the next best way."""
    model = Unigram(scores)
    used: Counter[str] = Counter()
    for word, count in counts.items():
        for piece in model.encode(word):
            used[piece] += count
    loss = {}
    for piece in scores:
        if len(piece) > 1:
            ways = model.n_best(piece, 2)
            second = next((score for score, pieces in ways if len(pieces) > 1), -math.inf)
            loss[piece] = used[piece] * (scores[piece] - second) if used[piece] else 0.0
    most = sorted(loss, key=lambda piece: (-loss[piece], -scores[piece], piece))
    room = max(0, size - len(characters))
    return {piece: scores[piece] for piece in (*sorted(characters), *most[:room])}
