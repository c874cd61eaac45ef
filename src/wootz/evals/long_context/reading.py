"""Questions about one document among many: RULER's two QA tasks, and "Lost in the Middle".

RULER hides SQuAD and HotpotQA paragraphs among others. A model may know those by heart, and they aren't ours to ship,
so by default both are made up: places that nobody built, opened by people who never lived. A file in SQuAD's own format
takes their place in `qa_1` (`squad_pool`), as in the paper.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from random import Random

from wootz.core import BadRequestError
from wootz.evals.long_context.case import (
    AS_IT_IS,
    Case,
    Question,
    QuestionAt,
    any_whole_words,
    random_for,
    string_match_part,
)
from wootz.evals.long_context.fitting import fit
from wootz.evals.long_context.layout import lay_out
from wootz.evals.long_context.setup import Setup
from wootz.evals.long_context.words import coined

QA_TOKENS = 32
"""RULER's limit for the answers of its QA tasks."""


@dataclass(frozen=True)
class Exercise:
    """A question, any of whose ``answers`` is right, the ``gold`` documents that tell it, and others that do not.
    ``num_others`` is how many there are, None where they never end."""

    question: str
    answers: tuple[str, ...]
    gold: tuple[str, ...]
    others: Iterator[str]
    num_others: int | None = None


ExerciseMaker = Callable[[Random], Exercise]


def qa(setup: Setup, length: int, sample: int, *, name: str, make: ExerciseMaker) -> Question:
    """RULER's QA with distractors: gold documents in random places among as many others as fit into ``length``."""
    rng = random_for(setup.seed, name, length, sample)
    exercise = make(rng)
    max_tokens = setup.answer_room(length, QA_TOKENS)
    order = rng.randrange(2**32)
    others: list[str] = []

    def prompt(num_others: int) -> str:
        others.extend(islice(exercise.others, max(0, num_others - len(others))))
        documents = [*exercise.gold, *others[:num_others]]
        Random(order).shuffle(documents)
        return _asked(setup, documents, exercise.question, "end")

    size = fit(name, prompt, setup.count, length - max_tokens, most=exercise.num_others)
    _must_suffice(exercise, size + 1, name)
    return Question(
        prompt=prompt(size),
        expected=exercise.answers,
        grade=string_match_part,
        max_tokens=max_tokens,
    )


def lost_in_the_middle_cases(
    setup: Setup,
    *,
    positions: Sequence[int],
    samples: int,
    num_documents: int = 20,
    lengths: Sequence[int] = (),
    make: ExerciseMaker | None = None,
    question_at: Sequence[QuestionAt] = ("end",),
) -> list[Case]:
    """One gold document among distractors, at each of ``positions`` of ``num_documents`` (from 1; Liu et al. 2023).

    With ``lengths``, the number of documents is what fits into each length, and a position means the same share of the
    way. One sample has the same documents at every position.
    """
    make = make or invented_place
    if not positions or min(positions) < 1 or max(positions) > num_documents:
        raise BadRequestError(f"positions go from 1 to {num_documents}", param="positions")

    def build(length: int, depth: float, sample: int, place: QuestionAt) -> Question:
        rng = random_for(setup.seed, "lost_in_the_middle", length, sample)
        exercise = make(rng)
        max_tokens = setup.answer_room(length, QA_TOKENS)
        others: list[str] = []

        def prompt(num_others: int) -> str:
            others.extend(islice(exercise.others, max(0, num_others - len(others))))
            documents = others[:num_others]
            documents[(at := round(depth * len(documents))) : at] = exercise.gold
            return _asked(setup, documents, exercise.question, place)

        size = num_documents - 1
        if length != AS_IT_IS:
            budget = length - max_tokens
            size = fit("lost_in_the_middle", prompt, setup.count, budget, least=2, most=exercise.num_others)
        _must_suffice(exercise, size, "lost_in_the_middle")
        return Question(
            prompt=prompt(size),
            expected=exercise.answers,
            grade=any_whole_words,
            max_tokens=max_tokens,
        )

    return [
        Case(
            task="lost_in_the_middle",
            length=length,
            sample=sample,
            depth=depth,
            question_at=place,
            build=lambda length=length, depth=depth, sample=sample, place=place: build(length, depth, sample, place),
        )
        for length in sorted(lengths) or [AS_IT_IS]
        for depth in ((position - 1) / max(1, num_documents - 1) for position in positions)
        for place in question_at
        for sample in range(samples)
    ]


# --- made up ------------------------------------------------------------------------------------------------------

_KINDS = ("Museum", "Library", "Bridge", "Theatre", "Observatory", "Mill", "Garden", "Lighthouse", "Abbey", "School")
_KNOWN_FOR = (
    "its painted ceiling", "the two stone lions at its door", "a clock that strikes thirteen", "its collection of maps",
    "the narrow stairs", "its bells", "the cherry trees around it", "a window of blue glass", "its long echo",
)  # fmt: skip
_TRADES = ("carpenter", "surgeon", "shipwright", "printer", "botanist", "mason", "teacher", "painter", "watchmaker")


@dataclass(frozen=True)
class _Place:
    name: str
    town: str
    year: str
    founder: str
    birthplace: str
    description: str
    biography: str


def _place(rng: Random, taken: set[str]) -> _Place:
    name, town, first, last, birthplace = (coined(rng, taken).capitalize() for _ in range(5))
    name = f"{name} {rng.choice(_KINDS)}"
    founder, year = f"{first} {last}", str(rng.randrange(1650, 1990))
    description = (
        f"The {name} stands in the town of {town}. It was opened in the year {year} by {founder}, "
        f"and visitors know it for {rng.choice(_KNOWN_FOR)}."
    )
    biography = (
        f"{founder} was born in {birthplace}, worked for many years as a {rng.choice(_TRADES)}, "
        f"and is still remembered for {rng.choice(('generosity', 'a sharp tongue', 'long walks', 'exact habits'))}."
    )
    return _Place(name, town, year, founder, birthplace, description, biography)


def invented_place(rng: Random) -> Exercise:
    """One hop, as in SQuAD: the document that names the place holds the answer."""
    taken = set[str]()
    place = _place(rng, taken)
    question, answer = rng.choice(
        [
            (f"In which town does the {place.name} stand?", place.town),
            (f"In which year was the {place.name} opened?", place.year),
            (f"Who opened the {place.name}?", place.founder),
        ]
    )
    others = (_place(rng, taken).description for _ in count())
    return Exercise(question, (answer,), (place.description,), others)


def invented_founder(rng: Random) -> Exercise:
    """Two hops, as in HotpotQA: one document names the founder, another tells where the founder was born."""
    taken = set[str]()
    place = _place(rng, taken)
    others = (text for _ in count() for text in _both_documents(_place(rng, taken)))
    question = f"Where was the person born who opened the {place.name}?"
    return Exercise(question, (place.birthplace,), _both_documents(place), others)


def _both_documents(place: _Place) -> tuple[str, str]:
    return place.description, place.biography


# --- a file in SQuAD's format -------------------------------------------------------------------------------------


def squad_pool(file: Path) -> ExerciseMaker:
    """Questions with their paragraphs from a file in SQuAD's JSON format (SQuAD 1.1 and 2.0, XQuAD, …); the other
    paragraphs are the distractors. Questions without an answer are left out."""
    try:
        content = json.loads(file.expanduser().read_text(encoding="utf-8"))
        paragraphs = [paragraph for article in content["data"] for paragraph in article["paragraphs"]]
        texts = list(dict.fromkeys(paragraph["context"] for paragraph in paragraphs))
        questions = [
            (qa["question"], tuple(dict.fromkeys(answer["text"] for answer in qa["answers"])), paragraph["context"])
            for paragraph in paragraphs
            for qa in paragraph["qas"]
            if qa.get("answers")
        ]
    except OSError as error:
        raise BadRequestError(f"{file} can't be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise BadRequestError(f"{file} is not in SQuAD's format") from None
    if not questions:
        raise BadRequestError(f"{file} holds no question with an answer")

    def make(rng: Random) -> Exercise:
        question, answers, gold = rng.choice(questions)
        others = [text for text in texts if text != gold]
        rng.shuffle(others)
        return Exercise(question, answers, (gold,), iter(others), len(others))

    return make


def _must_suffice(exercise: Exercise, num_others: int, task: str) -> None:
    if exercise.num_others is not None and exercise.num_others < num_others:
        raise BadRequestError(f"{task}: {exercise.num_others + 1} documents are too few for so long a context")


def _asked(setup: Setup, documents: Sequence[str], question: str, question_at: QuestionAt) -> str:
    laid = lay_out(
        "\n\n".join(f"Document {number}: {document}" for number, document in enumerate(documents, 1)),
        f"Question: {question} Answer in a few words and with nothing else.",
        question_at=question_at,
        instruction="Answer the question from the documents; only some of them are relevant.",
    )
    return laid + setup.opening("")
