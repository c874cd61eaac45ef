"""Which threshold? Hit rate against false-hit rate, measured on labelled pairs of questions.

A pair says of two questions whether one's answer is the other's. A threshold's *hit rate* is the share of the pairs
with one answer that it would serve; its *false-hit rate* is the share of what it would serve that would be wrong. That
share depends on how many near misses there are among the pairs: they should come from the workload. Few pairs prove
little, so each rate comes with the upper end of its 95 % interval (Clopper and Pearson, 1934).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wootz.core import BadRequestError, LanguageModel, MissingExtraError, NotFoundError
from wootz.core.wire import EmbeddingRequest
from wootz.gateway.caches.guard import difference
from wootz.gateway.caches.semantic import unit_vector

THRESHOLDS = [round(0.70 + 0.01 * step, 2) for step in range(31)]
BATCH = 64


@dataclass(frozen=True, slots=True)
class Pair:
    a: str
    b: str
    same: bool


@dataclass(frozen=True, slots=True)
class Point:
    """What one threshold would do on the pairs."""

    threshold: float
    hits: int
    false_hits: int
    hit_rate: float
    false_hit_rate: float
    false_hit_rate_at_most: float
    """With 95 % confidence, for pairs like these."""


@dataclass(frozen=True, slots=True)
class Tuning:
    pairs: list[Pair]
    cosines: list[float]
    plain: list[Point]
    guarded: list[Point]
    target: float

    def best(self, *, guard: bool) -> Point | None:
        """The lowest threshold from which on no higher one has too many false hits; None when there is none."""
        chosen = None
        for point in reversed(self.guarded if guard else self.plain):
            if point.false_hit_rate > self.target:
                break
            chosen = point if point.hits else chosen
        return chosen


def read_pairs(file: Path) -> list[Pair]:
    """JSONL of ``{"a": …, "b": …, "same": true}``. Raises `BadRequestError` with the line."""
    if not file.is_file():
        raise NotFoundError(f"there is no file {file}")
    pairs = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            pair = Pair(row["a"], row["b"], row["same"])
        except (ValueError, KeyError, TypeError):
            pair = None
        if pair is None or not (isinstance(pair.a, str) and isinstance(pair.b, str) and isinstance(pair.same, bool)):
            raise BadRequestError(f'{file}, line {number}: not {{"a": "…", "b": "…", "same": true}}')
        pairs.append(pair)
    if not any(pair.same for pair in pairs) or all(pair.same for pair in pairs):
        raise BadRequestError(f"{file}: needs pairs of both kinds, same and not")
    return pairs


async def tune(pairs: list[Pair], embedder: LanguageModel, target: float = 0.01) -> Tuning:
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.a, pair.b)))
    vectors: dict[str, Any] = {}
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        answer = await embedder.embed(EmbeddingRequest(model=embedder.name, input=batch))
        vectors |= {text: unit_vector(item.embedding) for text, item in zip(batch, answer.data, strict=True)}
    cosines = [float(vectors[pair.a] @ vectors[pair.b]) for pair in pairs]
    alike = [difference(pair.a, pair.b) is None for pair in pairs]
    return Tuning(pairs, cosines, _curve(pairs, cosines, [True] * len(pairs)), _curve(pairs, cosines, alike), target)


def _curve(pairs: Sequence[Pair], cosines: Sequence[float], passed: Sequence[bool]) -> list[Point]:
    same = np.array([pair.same for pair in pairs])
    points = []
    for threshold in THRESHOLDS:
        served = (np.array(cosines) >= threshold) & np.array(passed)
        hits, false_hits = int(served.sum()), int((served & ~same).sum())
        points.append(
            Point(
                threshold=threshold,
                hits=hits,
                false_hits=false_hits,
                hit_rate=float((served & same).sum() / same.sum()),
                false_hit_rate=false_hits / hits if hits else 0.0,
                false_hit_rate_at_most=upper_bound(false_hits, hits),
            )
        )
    return points


def upper_bound(events: int, trials: int, confidence: float = 0.95) -> float:
    """The largest rate at which that few events still happen with a probability of ``1 - confidence``."""
    if trials == 0 or events >= trials:
        return 1.0
    low, high = events / trials, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        low, high = (rate, high) if _at_most(events, trials, rate) > 1 - confidence else (low, rate)
    return high


def _at_most(events: int, trials: int, rate: float) -> float:
    """Of a binomial: the probability of at most that many events."""
    term = total = (1 - rate) ** trials
    for k in range(1, events + 1):
        term *= (trials - k + 1) / k * rate / (1 - rate)
        total += term
    return total


def plot(tuning: Tuning, file: Path) -> None:
    """Hits and false hits by threshold, with the guard and without; the file's suffix chooses the format."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("gateway.caches.tuning", "bench", "matplotlib") from None
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for points, style, label in ((tuning.plain, "--", "without the guard"), (tuning.guarded, "-", "with the guard")):
        thresholds = [point.threshold for point in points]
        left.plot(thresholds, [100 * point.hit_rate for point in points], style, color="black", label=label)
        right.plot(thresholds, [100 * point.false_hit_rate for point in points], style, color="black", label=label)
    right.axhline(100 * tuning.target, color="grey", linewidth=0.8)
    for axes, title in ((left, "pairs with one answer that are served"), (right, "of what is served: wrong")):
        axes.set(title=title, xlabel="cosine threshold", ylabel="%")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
