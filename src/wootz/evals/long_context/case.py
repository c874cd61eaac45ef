"""What a long-context evaluation is made of: cases, their questions, and the rows that answers leave.

A `Case` says what is asked (task, length, where the needle lies) and builds its `Question` only when its turn comes:
a run at 128 K tokens would not hold all its prompts in memory, and a run that goes on skips what it has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

Grade = Callable[[str, Sequence[str]], float]
"""``(answer, expected) -> score`` from 0 to 1."""

QuestionAt = Literal["end", "start", "both"]
"""Where the question stands relative to the long text; `wootz.evals.long_context.layout` writes it."""

AS_IT_IS = 0
"""The length of a case that is not brought to a length: its prompt is as long as it comes."""


@dataclass(frozen=True, kw_only=True)
class Question:
    prompt: str
    expected: tuple[str, ...]
    grade: Grade
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """``length`` is in tokens, prompt and answer together, so a window of 2,048 can be tested at 2,048. ``depth`` runs
    from 0 (the text's beginning) to 1 (its end); None where a task scatters what is to be found."""

    task: str
    length: int
    sample: int
    depth: float | None = None
    question_at: QuestionAt = "end"
    build: Callable[[], Question] = field(repr=False, compare=False)

    @property
    def id(self) -> str:
        depth = "any" if self.depth is None else f"{self.depth:.4f}"
        return f"{self.task}/{self.length}/{depth}/{self.question_at}/{self.sample}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one case gave. ``refused`` holds the endpoint's words when it would not take a prompt of this length; such a
    case is failed. ``prompt_tokens`` is the endpoint's own count."""

    id: str
    task: str
    length: int
    sample: int
    depth: float | None
    question_at: str
    score: float
    expected: tuple[str, ...]
    answer: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    time_to_first_token: float | None = None
    seconds: float = 0.0
    refused: str = ""

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Row:
        return cls(**{**row, "expected": tuple(row["expected"])})


def random_for(seed: int, *place: object) -> Random:
    """A generator of one place's own: the same on every machine and in any order of the cases."""
    return Random("/".join(map(str, (seed, *place))))


# --- grades ---------------------------------------------------------------------------------------------------


def string_match_all(answer: str, expected: Sequence[str]) -> float:
    """RULER's metric for retrieval, tracing and aggregation: the share of references that occur in the answer, as
    substrings, case ignored."""
    answer = answer.casefold()
    return sum(reference.casefold() in answer for reference in expected) / len(expected)


def string_match_part(answer: str, expected: Sequence[str]) -> float:
    """RULER's metric for question answering: 1 when any of the references occurs in the answer."""
    answer = answer.casefold()
    return float(any(reference.casefold() in answer for reference in expected))


def whole_words(answer: str, expected: Sequence[str]) -> float:
    """The share of references that stand in the answer as whole words: "17392" does not contain "7392"."""
    return sum(_stands_in(answer, reference) for reference in expected) / len(expected)


def any_whole_words(answer: str, expected: Sequence[str]) -> float:
    """1 when any of the references stands in the answer as whole words."""
    return float(any(_stands_in(answer, reference) for reference in expected))


def _stands_in(answer: str, reference: str) -> bool:
    pattern = rf"(?<!\w){re.escape(reference.strip().casefold())}(?!\w)"
    return re.search(pattern, answer.casefold()) is not None
