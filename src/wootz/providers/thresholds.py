"""Thresholds of a cascade, fitted to labelled answers: the least mean cost at which a target quality is reached.

For each question it must be known what every model's answer was worth, what it cost, and how confident its signal was.
What an accepted answer costs includes the rejected ones before it.

The search is exact. Among the questions that reach a model, a threshold accepts those of highest confidence, and what
becomes of the rest is the same problem with one model less. So the best (cost, quality) pairs of the rest, its Pareto
frontier, are all that one needs to know of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wootz.core import BadRequestError

MAX_CUTS = 100
"""Thresholds tried per model where there are more than one; beyond it, quantiles of the confidences."""


class Answered(BaseModel):
    """What one model made of one question. ``quality`` is 1 for right and 0 for wrong, or between; cost is USD."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    confidence: float = Field(allow_inf_nan=False)
    quality: Decimal = Field(ge=0, le=1)
    cost: Decimal = Field(ge=0)


Question = Sequence[Answered]
"""One entry for each model, cheap to dear."""


@dataclass(frozen=True)
class Operation:
    """What a cascade with these thresholds does, on average over the questions."""

    thresholds: tuple[float, ...]
    cost: Decimal
    quality: Decimal
    shares: tuple[float, ...] = ()
    """Of the questions that each model answers."""
    wasted: Decimal = Decimal(0)
    """The part of the cost that went into rejected answers."""


def read_questions(path: Path) -> list[Question]:
    """JSON lines ``{"models": [{"confidence": 0.8, "quality": 1, "cost": "0.0001"}, …]}``."""
    questions: list[Question] = []
    number = 0
    try:
        for number, line in enumerate(path.read_text().splitlines(), 1):  # noqa: B007
            if line.strip():
                row = json.loads(line)
                questions.append([Answered.model_validate(entry) for entry in row["models"]])
    except OSError as error:
        raise BadRequestError(f"{path}: {error.strerror}") from None
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "not as `wootz cascade fit` reads it"
        raise BadRequestError(f"{path}, line {number}: {what}") from None
    if len({len(question) for question in questions}) != 1 or len(questions[0]) < 2:
        raise BadRequestError(f"{path}: every line needs the same models, two or more")
    return questions


def operate(questions: Sequence[Question], thresholds: Sequence[float]) -> Operation:
    """What these thresholds do, question by question, as `Cascade` would."""
    cost = quality = wasted = Decimal(0)
    answered = [0] * (len(thresholds) + 1)
    for question in questions:
        for stage, answer in enumerate(question):
            cost += answer.cost
            if stage == len(thresholds) or answer.confidence >= thresholds[stage]:
                quality += answer.quality
                answered[stage] += 1
                break
            wasted += answer.cost
    n = len(questions)
    shares = tuple(count / n for count in answered)
    return Operation(tuple(thresholds), cost / n, quality / n, shares, wasted / n)


def last_alone(questions: Sequence[Question]) -> Operation:
    """The last model asked for everything, and no other."""
    n = len(questions)
    cost = sum((question[-1].cost for question in questions), Decimal(0))
    quality = sum((question[-1].quality for question in questions), Decimal(0))
    return Operation((), cost / n, quality / n)


def frontier(questions: Sequence[Question]) -> list[Operation]:
    """Every combination that no other beats in both cost and quality, cheapest first."""
    pairs = _frontier(list(questions), 0, len(questions[0]) - 1)
    n = len(questions)
    return [Operation(thresholds, cost / n, quality / n) for cost, quality, thresholds in pairs]


def fit(questions: Sequence[Question], target_quality: float) -> Operation:
    """The cheapest with at least this share of the last model's quality. Raises `BadRequestError` if there is none."""
    of_last = last_alone(questions).quality
    target = Decimal(repr(target_quality)) * of_last
    best = next((one for one in frontier(questions) if one.quality >= target), None)
    if best is None:
        raise BadRequestError(f"no thresholds reach {target_quality:.3g} of the last model's quality {of_last:.3f}")
    return operate(questions, best.thresholds)


_Pair = tuple[Decimal, Decimal, tuple[float, ...]]
"""Cost and quality, summed; and the thresholds from this stage on."""


def _frontier(questions: list[Question], stage: int, last: int) -> list[_Pair]:
    paid = sum((question[stage].cost for question in questions), Decimal(0))
    if stage == last:
        return [(paid, sum((question[stage].quality for question in questions), Decimal(0)), ())]
    ordered = sorted(questions, key=lambda question: -question[stage].confidence)
    confidences = [question[stage].confidence for question in ordered]
    pairs: list[_Pair] = []
    accepted, place = Decimal(0), 0
    for cut in _cuts(confidences, few=last > 1):
        while place < cut:
            accepted += ordered[place][stage].quality
            place += 1
        threshold = confidences[cut - 1] if cut else math.inf
        for cost, quality, later in _frontier(ordered[cut:], stage + 1, last):
            pairs.append((paid + cost, accepted + quality, (threshold, *later)))
    return _unbeaten(pairs)


def _cuts(confidences: Sequence[float], *, few: bool) -> Iterable[int]:
    """How many of them may be accepted: questions of one confidence all or none."""
    n = len(confidences)
    cuts = [cut for cut in range(n + 1) if cut in (0, n) or confidences[cut - 1] != confidences[cut]]
    if few and len(cuts) > MAX_CUTS:
        step = (len(cuts) - 1) / (MAX_CUTS - 1)
        cuts = [cuts[round(number * step)] for number in range(MAX_CUTS)]
    return cuts


def _unbeaten(pairs: list[_Pair]) -> list[_Pair]:
    best: list[_Pair] = []
    for pair in sorted(pairs, key=lambda one: (one[0], -one[1])):
        if not best or pair[1] > best[-1][1]:
            best.append(pair)
    return best
