"""Train the learned router on preferences, and show what each threshold would buy.

A line of the file is a prompt with what two models made of it: ``{"prompt": …, "cheap": 0.4, "dear": 1.0}`` (qualities
between 0 and 1), or only whose answer was preferred: ``{"prompt": …, "winner": "dear" | "cheap" | "tie"}``. The router
learns which prompts the dear model is better at. The classifier is a logistic regression with an L2 penalty, fitted by
accelerated gradient steps over sparse rows; it is convex, so there is one answer, and no seed.

A curve is only worth something for prompts that were not trained on: `cross_scores` gives each its score from a router
trained on the other folds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wootz.core import BadRequestError, LanguageModel, MissingExtraError
from wootz.gateway.routing.features import embedded, terms, tf_idf
from wootz.gateway.routing.policies.learned import Router

PENALTY = 1.0
"""Of half the squared weights, beside the sum of the losses (scikit-learn's C = 1)."""
RARE = 2
"""A term in fewer prompts than this is not learned from."""
STEPS = 2000
STILL = 1e-6
FOLDS = 5
BATCH = 32


class Preference(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: str = Field(min_length=1)
    winner: Literal["cheap", "dear", "tie"] | None = None
    cheap: float | None = Field(default=None, ge=0, le=1)
    dear: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _says_who_was_better(self) -> Preference:
        if self.winner is None and (self.cheap is None or self.dear is None):
            raise ValueError('give "winner", or the qualities "cheap" and "dear"')
        return self

    @property
    def qualities(self) -> tuple[float, float]:
        """The cheap answer's and the dear one's."""
        if self.cheap is not None and self.dear is not None:
            return self.cheap, self.dear
        return {"cheap": (1.0, 0.0), "dear": (0.0, 1.0), "tie": (1.0, 1.0)}[self.winner or "tie"]

    @property
    def needs_dear(self) -> bool:
        cheap, dear = self.qualities
        return dear > cheap


def read_preferences(path: Path) -> list[Preference]:
    preferences, number = [], 0
    try:
        for number, line in enumerate(path.read_text().splitlines(), 1):  # noqa: B007
            if line.strip():
                preferences.append(Preference.model_validate_json(line))
    except OSError as error:
        raise BadRequestError(f"{path}: {error.strerror}") from None
    except (ValidationError, UnicodeDecodeError) as error:
        what = error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else error
        raise BadRequestError(f"{path}, line {number}: {what}") from None
    if len({preference.needs_dear for preference in preferences}) < 2:
        raise BadRequestError(f"{path}: there must be prompts that the dear model is better at, and others")
    return preferences


Vectors = Sequence[Mapping[str, float]]


def train(preferences: Sequence[Preference], vectors: Vectors | None = None, embedder: str | None = None) -> Router:
    """Over terms; or over ``vectors``, a prompt each, which the ``embedder`` made of them (`features.embedded`)."""
    labels = [preference.needs_dear for preference in preferences]
    if vectors is not None:
        return Router(*_fit(vectors, labels), embedder=embedder)
    counts = [terms(preference.prompt) for preference in preferences]
    frequency = Counter(term for count in counts for term in count)
    n = len(preferences)
    idf = {term: math.log((1 + n) / (1 + seen)) + 1 for term, seen in sorted(frequency.items()) if seen >= RARE}
    return Router(*_fit([tf_idf(count, idf) for count in counts], labels), idf=idf)


def _fit(vectors: Vectors, labels: Sequence[bool]) -> tuple[float, dict[str, float]]:
    """The bias and each term's weight. Raises `MissingExtraError` without numpy."""
    try:
        import numpy as np
    except ImportError:
        raise MissingExtraError("gateway.routing.training", "engine", "numpy") from None

    n = len(vectors)
    vocabulary = list(dict.fromkeys(term for vector in vectors for term in vector))
    place = {term: number for number, term in enumerate(vocabulary)}
    size = len(vocabulary)
    row_E = np.array([row for row, vector in enumerate(vectors) for _ in vector], int)
    column_E = np.array([place[term] for vector in vectors for term in vector], int)
    value_E = np.array([value for vector in vectors for value in vector.values()], float)
    label_N = np.array(labels, float)

    # Nesterov's steps. Rows have length 1, so with the bias the curvature is at most (1 + 1) / 4 a prompt.
    step = 1 / (n / 2 + PENALTY)
    weight_F = ahead_F = np.zeros(size + 1)
    momentum = 1.0
    for _ in range(STEPS):
        margin_N = ahead_F[size] + np.bincount(row_E, value_E * ahead_F[column_E], n)
        error_N = 1 / (1 + np.exp(-margin_N)) - label_N
        slope_F = np.append(np.bincount(column_E, value_E * error_N[row_E], size), error_N.sum())
        slope_F[:size] += PENALTY * ahead_F[:size]
        next_F, next_momentum = ahead_F - step * slope_F, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead_F = next_F + (momentum - 1) / next_momentum * (next_F - weight_F)
        weight_F, momentum = next_F, next_momentum
        if np.abs(slope_F).max() < STILL * n:
            break
    return float(weight_F[size]), {term: float(weight_F[place[term]]) for term in vocabulary}


def cross_scores(preferences: Sequence[Preference], vectors: Vectors | None = None) -> list[float]:
    """Each prompt's score by a router that has not seen it."""
    scores = [0.0] * len(preferences)
    for fold in range(FOLDS):
        others = [number for number in range(len(preferences)) if number % FOLDS != fold]
        seen = None if vectors is None else [vectors[number] for number in others]
        router = train([preferences[number] for number in others], seen)
        for number in range(fold, len(preferences), FOLDS):
            if vectors is None:
                scores[number] = router.score_text(preferences[number].prompt)
            else:
                scores[number] = router.score(vectors[number])
    return scores


async def vectors_of(preferences: Sequence[Preference], embedder: LanguageModel) -> Vectors:
    """In batches, as endpoints limit what one request may hold."""
    prompts = [preference.prompt for preference in preferences]
    batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    return [vector for batch in batches for vector in await embedded(embedder, batch)]


# --- what it buys -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    threshold: float
    """From this score on the dear model is asked."""
    dear_share: float
    quality: float
    cost: float
    """A part of what asking the dear model always costs."""


@dataclass(frozen=True)
class Curve:
    """From never asking the dear model to always doing so."""

    points: list[Point]
    recovered: float
    """The part of the gap between the models that is closed, on average over all shares (RouteLLM's APGR): 0.5 is what
    chance gets, more is what the router knows."""

    def cheapest(self, of_dear: float) -> Point:
        """The least cost at which this part of the dear model's quality is reached."""
        always = self.points[-1]
        return min(
            (point for point in self.points if point.quality >= of_dear * always.quality),
            key=lambda point: point.cost,
            default=always,
        )


def curve(preferences: Sequence[Preference], scores: Sequence[float], cheap_price: float) -> Curve:
    """``cheap_price`` is what the cheap model costs, as a part of the dear one's price."""
    ordered = sorted(zip(scores, preferences, strict=True), key=lambda pair: -pair[0])
    n = len(ordered)
    quality = sum(preference.qualities[0] for _, preference in ordered)
    points = [Point(1.0 + 1e-9, 0.0, quality / n, cheap_price)]
    for number, (score, preference) in enumerate(ordered, 1):
        cheap, dear = preference.qualities
        quality += dear - cheap
        if number == n or ordered[number][0] != score:
            share = number / n
            points.append(Point(score, share, quality / n, share + (1 - share) * cheap_price))
    first, last = points[0], points[-1]
    area = sum(
        (right.dear_share - left.dear_share) * (left.quality + right.quality) / 2 for left, right in pairwise(points)
    )
    gap = last.quality - first.quality
    return Curve(points, (area - first.quality) / gap if gap else 0.5)


def plot(drawn: Curve, file: Path) -> None:
    """Raises `MissingExtraError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("gateway.routing.training", "bench", "matplotlib") from None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    first, last = drawn.points[0], drawn.points[-1]
    axes.plot([point.cost for point in drawn.points], [point.quality for point in drawn.points], label="learned router")
    axes.plot([first.cost, last.cost], [first.quality, last.quality], "--", color="grey", label="by chance")
    axes.annotate("cheap always", (first.cost, first.quality))
    axes.annotate("dear always", (last.cost, last.quality), ha="right")
    axes.set(xlabel="cost, as a part of the dear model's", ylabel="quality", xlim=(0, None))
    axes.set_title(f"Quality and cost: {drawn.recovered:.0%} of the gap recovered on average")
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=150)
