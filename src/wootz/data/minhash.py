"""Near-duplicates by MinHash and locality-sensitive hashing (Broder 1997; Lee et al., arXiv 2107.06499).

The share of equal numbers in two documents' *signatures* estimates the Jaccard similarity s of their sets of shingles:
each number is the least hash of the set under one of K random orders. Signatures are cut into b bands of r numbers;
documents that agree in a whole band are taken for duplicates, which happens with probability ``1 - (1 - s^r)^b``: an
S-shaped curve that `best_bands` lays at the similarity one wants. Clusters are what hangs together by such pairs, and
the first document of each is kept.

Signatures are computed by `rensa` (Rust), eleven times as fast as NumPy. Nothing but the bands' hashes, 8 · b bytes per
document, is ever needed of all documents, and only one band's at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from wootz.core.errors import ConfigError
from wootz.data.permutation import key_of
from wootz.data.shingles import Shingles, mixed, shingles


@dataclass(frozen=True)
class Bands:
    """``num`` bands of ``rows`` numbers each."""

    num: int
    rows: int

    def detection(self, similarity: float) -> float:
        """The probability that two documents of this Jaccard similarity are taken for duplicates."""
        return 1 - (1 - similarity**self.rows) ** self.num


@cache
def best_bands(jaccard: float, num_permutations: int = 128) -> Bands:
    """The bands that err least around ``jaccard``: least in sum are the area under the curve before it (documents that
    are not that similar and go) and the area above the curve after it (duplicates that stay)."""
    if not 0 < jaccard < 1:
        raise ConfigError(f"a similarity of {jaccard} can't be a threshold", hint="choose one between 0 and 1")
    if num_permutations < 1:
        raise ConfigError("a signature has at least one number")
    grid = (np.arange(1000) + 0.5) / 1000

    def error(bands: Bands) -> float:
        curve = 1 - (1 - grid**bands.rows) ** bands.num
        return float(np.where(grid < jaccard, curve, 1 - curve).sum())

    return min(
        (Bands(num, rows) for rows in range(1, num_permutations + 1) for num in range(1, num_permutations // rows + 1)),
        key=error,
    )


@dataclass(frozen=True)
class MinHash:
    """What turns documents into bands. Two that are equal give equal numbers, in any process."""

    bands: Bands
    ngram: int = 5
    """Words in a shingle."""
    seed: int = 0

    @staticmethod
    def at(jaccard: float, num_permutations: int = 128, *, ngram: int = 5, seed: int = 0) -> MinHash:
        return MinHash(best_bands(jaccard, num_permutations), ngram, seed)

    def signatures(self, sets: Shingles) -> NDArray[np.uint32]:
        """``(documents, num · rows)``."""
        from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  compiled, without types

        num_numbers = self.bands.num * self.bands.rows
        if not len(sets):
            return np.empty((0, num_numbers), np.uint32)
        seed = key_of("minhash", self.seed) & 0x7FFFFFFF
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            sets.hashes, sets.offsets.astype(np.uint64), num_numbers, seed
        )
        return np.array(matrix.to_rows(), np.uint32)

    def band_hashes(self, texts: Sequence[str]) -> NDArray[np.uint64]:
        """``(documents, num)``: one number for each band of each document. An empty document is like no other."""
        return self.band_hashes_of(shingles(texts, self.ngram))

    def band_hashes_of(self, sets: Shingles) -> NDArray[np.uint64]:
        rows = self.signatures(sets).astype(np.uint64).reshape(len(sets), self.bands.num, self.bands.rows)
        hashes = np.full((len(sets), self.bands.num), np.uint64(key_of("band")))
        for row in range(self.bands.rows):
            hashes = mixed(hashes ^ (rows[:, :, row] + np.uint64(row << 32)))
        empty = np.diff(sets.offsets) == 0
        hashes[empty] = 0
        return hashes


class Clusters:
    """Sets of documents that belong together (union-find). Of each set the first document is its root."""

    def __init__(self, num_documents: int) -> None:
        self._parents = np.arange(num_documents)

    def join_equal(self, hashes_D: NDArray[np.uint64]) -> None:
        """Put documents with the same number into one set; 0 stands for none."""
        order = np.argsort(hashes_D, kind="stable")
        ordered = hashes_D[order]
        same = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0))
        for first, second in zip(order[same].tolist(), order[same + 1].tolist(), strict=True):
            self._join(first, second)

    def roots(self) -> NDArray[np.int64]:
        """Of every document the first one of its set."""
        while True:
            further = self._parents[self._parents]
            if np.array_equal(further, self._parents):
                return further
            self._parents = further

    def _join(self, first: int, second: int) -> None:
        first, second = self._root(first), self._root(second)
        if first != second:
            self._parents[max(first, second)] = min(first, second)

    def _root(self, document: int) -> int:
        parents = self._parents
        while (parent := int(parents[document])) != document:
            parents[document] = parents[parent]
            document = int(parents[document])
        return document


def near_duplicates(bands: Iterable[NDArray[np.uint64]], num_documents: int) -> NDArray[np.int64]:
    """Of every document the first one of its cluster, itself if it has none before it. ``bands`` gives one column of
    `MinHash.band_hashes` after the other."""
    clusters = Clusters(num_documents)
    for hashes_D in bands:
        clusters.join_equal(hashes_D)
    return clusters.roots()


def jaccard(first: str, second: str, ngram: int = 5) -> float:
    """The exact similarity that signatures estimate."""
    sets = shingles([first, second], ngram)
    one, other = set(sets[0].tolist()), set(sets[1].tolist())
    return len(one & other) / len(one | other) if one or other else 1.0
