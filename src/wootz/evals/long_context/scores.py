"""What rows add up to: scores with intervals, effective length, working context, the dip in the middle, layouts
compared."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from wootz.evals.long_context.case import AS_IT_IS, Row
from wootz.evals.statistics import sign_test, wilson_interval

Key = TypeVar("Key", bound=Hashable)

RULER_THRESHOLD = 0.856
"""RULER's bar for "effective": what Llama 2 7B (chat: 85.6 %) scores at its own 4 K (Hsieh et al. 2024, section 4)."""

EDGE = 0.2
"""The share of the context at each end that counts as edge; the 60 % between are the middle."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """``mean`` of partial scores with its 95 % Wilson interval; ``strict`` is the share of cases that got all of it."""

    count: int
    mean: float
    low: float
    high: float
    strict: float
    refused: int
    prompt_tokens: float
    """The mean that the endpoint counted, of prompts it took."""

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Score:
        rows = list(rows)
        total = sum(row.score for row in rows)
        low, high = wilson_interval(total, len(rows))
        taken = [row.prompt_tokens for row in rows if not row.refused]
        return cls(
            count=len(rows),
            mean=total / len(rows),
            low=low,
            high=high,
            strict=sum(row.score >= 1 for row in rows) / len(rows),
            refused=sum(bool(row.refused) for row in rows),
            prompt_tokens=fmean(taken) if taken else 0.0,
        )


def by(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, Score]:
    """Scores of the rows that share a key, in the order of the first of each."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return {name: Score.of(group) for name, group in groups.items()}


def by_length(rows: Iterable[Row]) -> dict[int, Score]:
    """Over all tasks: each has as many cases at a length, so this is the mean of the tasks' means, as RULER reports
    it."""
    return dict(sorted(by((row for row in rows if row.length != AS_IT_IS), lambda row: row.length).items()))


def effective_length(scores: Mapping[int, Score], threshold: float = RULER_THRESHOLD) -> int:
    """The longest length up to which every tested length scores at least ``threshold``; 0 when the shortest doesn't.

    Stricter than the longest length that happens to pass: a window with a hole in it isn't one that can be relied upon.
    """
    effective = 0
    for length, score in sorted(scores.items()):
        if score.mean < threshold:
            break
        effective = length
    return effective


@dataclass(frozen=True, kw_only=True)
class WorkingContext:
    """``gap`` is claimed / working, None where nothing works. ``tested`` is the longest length that was tried: a
    working length equal to it may be longer in truth."""

    claimed: int
    working: int
    tested: int
    threshold: float
    scores: Mapping[int, Score]

    @property
    def gap(self) -> float | None:
        return self.claimed / self.working if self.working else None

    def misses(self, *, require: int | None = None, max_gap: float | None = None) -> list[str]:
        """Which demands it does not meet, a line for each: the gate for CI."""
        missed = []
        if require is not None and self.working < require:
            missed.append(f"works up to {self.working} tokens, {require} are required")
        if max_gap is not None and (self.gap is None or self.gap > max_gap):
            gap = "infinite" if self.gap is None else f"{self.gap:.2f}"
            missed.append(f"claimed / working is {gap}, at most {max_gap:g} is allowed")
        return missed

    def as_metadata(self) -> dict[str, Any]:
        """What a model card records about it."""
        return {
            "claimed_length": self.claimed,
            "working_length": self.working,
            "tested_length": self.tested,
            "gap_ratio": self.gap,
            "threshold": self.threshold,
            "score_by_length": {str(length): score.mean for length, score in self.scores.items()},
        }


def working_context(rows: Sequence[Row], claimed: int, threshold: float = RULER_THRESHOLD) -> WorkingContext:
    """What a model claims against what it does, measured with any of the tasks or with the user's own questions."""
    scores = by_length(rows)
    working = effective_length(scores, threshold)
    return WorkingContext(
        claimed=claimed, working=working, tested=max(scores, default=0), threshold=threshold, scores=scores
    )


@dataclass(frozen=True, kw_only=True)
class MiddleDip:
    """Mean scores where the gold document stood in the first fifth, the middle 60 % and the last fifth. ``index`` is
    the mean of both ends minus the middle, in points of score: 0 for a model that reads evenly, above 0 for a
    U-curve."""

    beginning: float
    middle: float
    end: float

    @property
    def index(self) -> float:
        return (self.beginning + self.end) / 2 - self.middle


def middle_dip(rows: Iterable[Row]) -> MiddleDip | None:
    """None unless positions were swept over both ends and the middle."""
    beginning, middle, end = [], [], []
    for row in rows:
        if row.depth is not None:
            part = beginning if row.depth < EDGE else end if row.depth > 1 - EDGE else middle
            part.append(row.score)
    if not (beginning and middle and end):
        return None
    return MiddleDip(beginning=fmean(beginning), middle=fmean(middle), end=fmean(end))


@dataclass(frozen=True, kw_only=True)
class LayoutComparison:
    """The same cases with the question in two places. ``p_value`` is the sign test's over cases that differ."""

    first: str
    second: str
    first_better: int
    second_better: int
    equal: int
    difference: float
    """Mean score of the first minus the second."""
    p_value: float


def compare_layouts(rows: Sequence[Row]) -> list[LayoutComparison]:
    """Each pair of question places that the rows hold, compared case by case."""
    scores: dict[str, dict[tuple[Any, ...], float]] = {}
    for row in rows:
        scores.setdefault(row.question_at, {})[row.task, row.length, row.depth, row.sample] = row.score
    places = list(scores)
    comparisons = []
    for index, first in enumerate(places):
        for second in places[index + 1 :]:
            pairs = [(scores[first][case], scores[second][case]) for case in scores[first] if case in scores[second]]
            better = sum(one > other for one, other in pairs)
            worse = sum(one < other for one, other in pairs)
            comparisons.append(
                LayoutComparison(
                    first=first,
                    second=second,
                    first_better=better,
                    second_better=worse,
                    equal=len(pairs) - better - worse,
                    difference=fmean(one - other for one, other in pairs) if pairs else 0.0,
                    p_value=sign_test(better, worse),
                )
            )
    return comparisons
