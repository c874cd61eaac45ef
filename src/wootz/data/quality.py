"""`QualityClassifier`: how much a text looks like text one wants, by its words and pairs of words.

A linear model over hashed n-grams, trained to tell reference texts (encyclopedia, textbooks) from what there is, as
fastText does; DCLM (arXiv 2406.11794) got more from this than from any other filter, keeping the best tenth. Each
distinct n-gram of a text is one feature of equal size, texts have length 1, and logistic loss is minimised by AdaGrad,
both classes weighing the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wootz.core.atomic import atomic_file
from wootz.core.errors import ConfigError, ModelFileError, NotFoundError
from wootz.data.shingles import shingles

BUCKETS = 1 << 18
_LEARNING_RATE = 0.5


@dataclass(frozen=True)
class Features:
    """The n-grams of several texts: those of text i are ``buckets[offsets[i] : offsets[i + 1]]``, each of
    ``sizes[i]``."""

    buckets: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.float32]


def features(texts: Sequence[str], num_buckets: int = BUCKETS) -> Features:
    words, pairs = shingles(texts, 1), shingles(texts, 2, short=False)
    number_of = np.concatenate([np.repeat(np.arange(len(texts)), np.diff(each.offsets)) for each in (words, pairs)])
    hashes = np.concatenate([words.hashes, pairs.hashes]) % np.uint64(num_buckets)
    distinct = np.unique(number_of * num_buckets + hashes.astype(np.int64))
    counts = np.bincount(distinct // num_buckets, minlength=len(texts))
    offsets = np.append(0, np.cumsum(counts))
    return Features(distinct % num_buckets, offsets, (1 / np.sqrt(np.maximum(counts, 1))).astype(np.float32))


class QualityClassifier:
    def __init__(self, weights: NDArray[np.float32], bias: float) -> None:
        self._weights, self._bias = weights, bias

    @staticmethod
    def fit(
        good: Sequence[str], other: Sequence[str], *, epochs: int = 8, batch_size: int = 16, seed: int = 0
    ) -> QualityClassifier:
        """Raises `ConfigError` where one of the two has no text."""
        if not good or not other:
            raise ConfigError("a quality classifier needs texts of both kinds", hint="give reference and other texts")
        told, random = features([*good, *other]), np.random.default_rng(seed)
        labels = np.repeat(np.array([1, 0], np.float32), [len(good), len(other)])
        importance = np.where(labels == 1, len(labels) / (2 * len(good)), len(labels) / (2 * len(other)))
        weights, squares = np.zeros(BUCKETS, np.float32), np.full(BUCKETS, 1e-8, np.float32)
        bias, bias_squares = 0.0, 1e-8
        for _ in range(epochs):
            for chosen in np.array_split(random.permutation(len(labels)), -(-len(labels) // batch_size)):
                lengths = told.offsets[chosen + 1] - told.offsets[chosen]
                within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                buckets = told.buckets[np.repeat(told.offsets[chosen], lengths) + within]
                sizes, row = np.repeat(told.sizes[chosen], lengths), np.repeat(np.arange(len(chosen)), lengths)
                margins = np.bincount(row, weights[buckets] * sizes, minlength=len(chosen)) + bias
                errors = (_sigmoid(margins) - labels[chosen]) * importance[chosen] / len(chosen)
                distinct, place = np.unique(buckets, return_inverse=True)
                gradient = np.bincount(place, errors[row] * sizes).astype(np.float32)
                squares[distinct] += gradient**2
                weights[distinct] -= _LEARNING_RATE * gradient / np.sqrt(squares[distinct])
                bias_squares += errors.sum() ** 2
                bias -= _LEARNING_RATE * errors.sum() / bias_squares**0.5
        return QualityClassifier(weights, float(bias))

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The probability ``(texts,)`` that each is of the good kind."""
        told = features(texts)
        number_of = np.repeat(np.arange(len(texts)), np.diff(told.offsets))
        sums = np.bincount(number_of, self._weights[told.buckets], minlength=len(texts))
        return _sigmoid(sums * told.sizes + self._bias)

    def save(self, path: Path | str) -> None:
        with atomic_file(path) as file:
            np.savez_compressed(file, weights=self._weights, bias=np.float64(self._bias))

    @staticmethod
    def load(path: Path | str) -> QualityClassifier:
        """Raises `NotFoundError` or `ModelFileError`, naming the file."""
        path = Path(path)
        if not path.is_file():
            raise NotFoundError(f"{path}: no such quality classifier")
        try:
            with np.load(path, allow_pickle=False) as content:
                return QualityClassifier(content["weights"], float(content["bias"]))
        except (OSError, ValueError, KeyError) as error:
            raise ModelFileError(f"{path}: is not a quality classifier ({error})") from None


def threshold(scores: NDArray[np.float64], keep: float) -> float:
    """The score that the best ``keep`` of them reach."""
    if not 0 < keep <= 1:
        raise ConfigError(f"keep = {keep} is no share", hint="0.1 keeps the best tenth")
    return float(np.quantile(scores, 1 - keep, method="higher")) if len(scores) else 0.0


def _sigmoid(margins: NDArray[np.floating]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(margins, np.float64)))
