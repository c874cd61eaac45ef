"""Near-duplicates: exact sets by plain Python, signatures that estimate Jaccard, detection by the formula."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from datasketch.lsh import _optimal_param
from hypothesis import given, settings
from hypothesis import strategies as st

from wootz.core.errors import ConfigError
from wootz.data.minhash import Bands, Clusters, MinHash, best_bands, jaccard, near_duplicates
from wootz.data.shingles import Shingles, num_words, shingles

RANDOM = np.random.default_rng(0)


def words_of(text: str) -> list[str]:
    """By regular expression, what `shingles` does with tables; for scripts with spaces and for Han."""
    return re.findall(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+", unicodedata.normalize("NFKC", text).lower())


TEXTS = st.lists(st.text(st.sampled_from("aB1_ .,\n\0éßﬁ２你好😀—"), max_size=30), max_size=6)


@given(texts=TEXTS, ngram=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_shingles_are_the_ngrams_of_words(texts: list[str], ngram: int) -> None:
    """Equal n-grams and only they have equal hashes, over all texts at once; those of a text stand in order."""
    found = shingles(texts, ngram)
    spelled: dict[int, tuple[str, ...]] = {}
    for number, text in enumerate(texts):
        words = words_of(text)
        expected = [tuple(words[n : n + ngram]) for n in range(max(len(words) - ngram + 1, bool(words)))]
        hashes = found[number].tolist()
        assert len(hashes) == len(expected)
        for value, words_in_it in zip(hashes, expected, strict=True):
            assert spelled.setdefault(value, words_in_it) == words_in_it
    assert len(set(spelled.values())) == len(spelled)
    assert num_words(texts).tolist() == [len(words_of(text)) for text in texts]


def test_hashes_do_not_depend_on_what_is_hashed_with_them() -> None:
    texts = [" ".join(RANDOM.choice(list("abcdefgh"), size=n)) for n in RANDOM.integers(0, 60_000, size=20)]
    together = shingles(texts, 3)
    for number, text in enumerate(texts):
        assert np.array_equal(together[number], shingles([text], 3)[0])
    assert len(shingles([], 3)) == 0


def pairs_of_sets(similarity: float, num_pairs: int, size: int = 120) -> Shingles:
    """Pairs whose Jaccard similarity is exactly ``similarity``: shared / (2 size - shared)."""
    shared = round(2 * size * similarity / (1 + similarity))
    assert shared / (2 * size - shared) == pytest.approx(similarity, abs=1e-12)
    rows = []
    for _ in range(num_pairs):
        drawn = RANDOM.integers(1 << 63, size=2 * size - shared, dtype=np.uint64)
        rows += [drawn[:size], np.concatenate([drawn[:shared], drawn[size:]])]
    return Shingles(np.concatenate(rows), np.arange(2 * num_pairs + 1) * size)


@pytest.mark.parametrize("similarity", [0.5, 0.6, 5 / 7, 0.8])
def test_detection_follows_the_formula(similarity: float) -> None:
    """On 1,500 planted pairs of known similarity, within four standard deviations."""
    num_pairs, size = 1500, {0.5: 120, 0.6: 120, 5 / 7: 120, 0.8: 117}[similarity]
    minhash = MinHash.at(0.7)
    pairs = pairs_of_sets(similarity, num_pairs, size)
    bands, signatures = minhash.band_hashes_of(pairs), minhash.signatures(pairs)
    found = (bands[0::2] == bands[1::2]).any(-1).mean()
    expected = minhash.bands.detection(similarity)
    assert abs(found - expected) < 4 * (expected * (1 - expected) / num_pairs) ** 0.5 + 1e-3
    assert (signatures[0::2] == signatures[1::2]).mean() == pytest.approx(similarity, abs=0.01)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("num_permutations", [64, 128])
def test_bands_are_those_of_datasketch(threshold: float, num_permutations: int) -> None:
    num, rows = _optimal_param(threshold, num_permutations, 0.5, 0.5)
    assert best_bands(threshold, num_permutations) == Bands(num, rows)


def test_planted_copies_are_found_and_strangers_stay() -> None:
    vocabulary = np.array([f"w{n}" for n in range(5000)])
    texts, originals = [], []
    for _ in range(150):
        words = RANDOM.choice(vocabulary, size=200)
        texts.append(" ".join(words))
        originals.append(True)
        if RANDOM.random() < 0.5:  # Two words changed: 10 of 196 shingles, Jaccard 0.9 and more.
            words[RANDOM.integers(200, size=2)] = "changed"
            texts.append(" ".join(words).upper().replace(" ", ",  ", 40))
            originals.append(False)
    texts.insert(3, "")
    originals.insert(3, True)
    texts.append("?!")
    originals.append(True)
    hashes = MinHash.at(0.7).band_hashes(texts)
    roots = near_duplicates(hashes.T, len(texts))
    assert ((roots == np.arange(len(texts))) == originals).all()
    assert jaccard(texts[0], texts[0] + " x") > 0.99


@given(edges=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11))))
@settings(deadline=None)
def test_clusters_are_what_hangs_together(edges: list[tuple[int, int]]) -> None:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    clusters = Clusters(12)
    for first, second in edges:
        hashes = np.zeros(12, np.uint64)
        hashes[[first, second]] = 7
        clusters.join_equal(hashes)
    graph = coo_array((np.ones(len(edges)), np.array(edges, int).reshape(-1, 2).T), shape=(12, 12))
    _, labels = connected_components(graph, directed=False)
    assert clusters.roots().tolist() == [labels.tolist().index(label) for label in labels]


@pytest.mark.parametrize("threshold", [0, 1, -1])
def test_a_threshold_that_means_nothing_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        best_bands(threshold)
