"""The quality classifier against scikit-learn's on the same texts, and against labels that it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from wootz.core.errors import ConfigError, ModelFileError, NotFoundError
from wootz.data.quality import QualityClassifier, features, threshold

RANDOM = np.random.default_rng(0)
WORDS = np.array([f"w{n}" for n in range(800)])
ZIPF = 1 / np.arange(1, len(WORDS) + 1)


def texts(num: int, tilt: float) -> list[str]:
    """Words by Zipf's law; ``tilt`` makes those of one half of the vocabulary a little likelier."""
    weights = ZIPF * np.where(np.arange(len(WORDS)) % 2, 1 + tilt, 1)
    return [" ".join(RANDOM.choice(WORDS, size=RANDOM.integers(20, 80), p=weights / weights.sum())) for _ in range(num)]


def test_it_ranks_as_well_as_scikit_learn() -> None:
    good, other, held_good, held_other = texts(400, 0.9), texts(700, 0), texts(300, 0.9), texts(300, 0)
    labels = [1] * 300 + [0] * 300
    ours = QualityClassifier.fit(good, other).scores([*held_good, *held_other])
    vectorizer = HashingVectorizer(ngram_range=(1, 2), binary=True, alternate_sign=False, n_features=2**18)
    peer = LogisticRegression(class_weight="balanced", C=10).fit(
        vectorizer.transform([*good, *other]), [1] * 400 + [0] * 700
    )
    theirs = peer.predict_proba(vectorizer.transform([*held_good, *held_other]))[:, 1]
    auc, peer_auc = roc_auc_score(labels, ours), roc_auc_score(labels, theirs)
    assert peer_auc > 0.75
    assert auc > peer_auc - 0.02
    assert np.corrcoef(ours, theirs)[0, 1] > 0.85


def test_features_are_the_distinct_words_and_pairs() -> None:
    told = features(["a b a b", "", "c"])
    assert np.diff(told.offsets).tolist() == [4, 0, 1]  # a, b, "a b", "b a"
    assert told.sizes[0] == 0.5
    assert told.sizes[2] == 1


def test_scores_do_not_depend_on_what_is_scored_with_them(tmp_path: Path) -> None:
    classifier = QualityClassifier.fit(texts(30, 0.9), texts(30, 0))
    some = [*texts(5, 0), ""]
    together = classifier.scores(some)
    assert np.allclose([classifier.scores([text])[0] for text in some], together)
    classifier.save(tmp_path / "q.npz")
    assert np.array_equal(QualityClassifier.load(tmp_path / "q.npz").scores(some), together)


def test_the_best_share_is_kept() -> None:
    scores = RANDOM.random(1000)
    for keep in (0.1, 0.5, 1.0):
        assert (scores >= threshold(scores, keep)).mean() == pytest.approx(keep, abs=2e-3)
    with pytest.raises(ConfigError, match="no share"):
        threshold(scores, 0)


def test_wrong_files_and_no_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both kinds"):
        QualityClassifier.fit([], ["a"])
    with pytest.raises(NotFoundError):
        QualityClassifier.load(tmp_path / "none.npz")
    (tmp_path / "odd.npz").write_bytes(b"odd")
    with pytest.raises(ModelFileError, match=r"odd\.npz"):
        QualityClassifier.load(tmp_path / "odd.npz")
