"""The same harness over the user's own questions: a synthetic score does not predict how a model does on *your* texts.

A file of JSON lines, each with ``prompt`` (the question) and ``answer`` (a text, or a list of which any is right). With
``context``, the passage that holds the answer, the question is asked at each length and depth, the passage hidden
among the other rows' contexts and then the haystack. Without, the prompt is asked as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wootz.core import BadRequestError
from wootz.evals.long_context.case import AS_IT_IS, Case, Question, QuestionAt, any_whole_words, random_for
from wootz.evals.long_context.haystack import Haystack
from wootz.evals.long_context.layout import lay_out
from wootz.evals.long_context.needle import fill
from wootz.evals.long_context.setup import Setup

ANSWER_TOKENS = 128


class DomainRow(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    prompt: str = Field(min_length=1)
    answer: str | list[str] = Field(min_length=1)
    context: str | None = None

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.answer,) if isinstance(self.answer, str) else tuple(self.answer)


def read_rows(file: Path) -> list[DomainRow]:
    """The rows of a JSONL file. Raises `BadRequestError` that names the file and the line that can't be used."""
    try:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise BadRequestError(f"{file} can't be read ({reason})") from None
    rows = [_row(line, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise BadRequestError(f"{file} holds no rows")
    return rows


def _row(line: str, where: str) -> DomainRow:
    try:
        return DomainRow.model_validate_json(line)
    except ValidationError:
        raise BadRequestError(f'{where} needs "prompt" (text) and "answer" (text, or a list of texts)') from None


def domain_cases(
    setup: Setup,
    rows: Sequence[DomainRow],
    lengths: Sequence[int],
    depths: Sequence[float] = (0.5,),
    question_at: Sequence[QuestionAt] = ("end",),
) -> list[Case]:
    """Rows with a context at each length and depth; rows without once, as they are."""
    placed = [
        Case(
            task="domain",
            length=length,
            sample=number,
            depth=depth,
            question_at=place,
            build=lambda length=length, number=number, depth=depth, place=place: _hidden(
                setup, rows, number, length, depth, place
            ),
        )
        for length in sorted(lengths)
        for depth in depths
        for place in question_at
        for number, row in enumerate(rows)
        if row.context is not None
    ]
    plain = [
        Case(task="domain", length=AS_IT_IS, sample=number, build=lambda row=row: _plain(setup, row))
        for number, row in enumerate(rows)
        if row.context is None
    ]
    return [*plain, *placed]


def _plain(setup: Setup, row: DomainRow) -> Question:
    prompt, max_tokens = row.prompt + setup.opening(""), setup.answer_room(AS_IT_IS, ANSWER_TOKENS)
    return Question(prompt=prompt, expected=row.answers, grade=any_whole_words, max_tokens=max_tokens)


def _hidden(
    setup: Setup, rows: Sequence[DomainRow], number: int, length: int, depth: float, question_at: QuestionAt
) -> Question:
    row, rng = rows[number], random_for(setup.seed, "domain", length, number)
    assert row.context is not None
    others = list(dict.fromkeys(other.context for other in rows if other.context and other.context != row.context))
    # Another row's passage may hold this answer too, and would make a far needle look near.
    others = [text for text in others if not any_whole_words(text, row.answers)]
    rng.shuffle(others)
    haystack = Haystack(chain(others, setup.haystack(rng).sentences()))
    max_tokens = setup.answer_room(length, ANSWER_TOKENS)

    def prompt(text: str) -> str:
        return lay_out(text, row.prompt, question_at=question_at) + setup.opening("")

    text = fill("domain", haystack, [row.context], [depth], prompt, setup.count, length - max_tokens)
    return Question(prompt=prompt(text), expected=row.answers, grade=any_whole_words, max_tokens=max_tokens)
