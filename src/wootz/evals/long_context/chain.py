"""Facts that only answer together: three needles to reason over, and RULER's variable tracking.

Retrieval finds a sentence that shares words with the question. Here the sentence that holds the answer shares none: the
way leads over facts in other places, and false trails of the same form lie next to it.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from itertools import pairwise
from random import Random

from wootz.evals.long_context.case import Case, Question, QuestionAt, random_for, string_match_all, whole_words
from wootz.evals.long_context.haystack import noise, scattered
from wootz.evals.long_context.layout import lay_out
from wootz.evals.long_context.needle import fill
from wootz.evals.long_context.setup import Setup
from wootz.evals.long_context.words import coined

CHAIN_TOKENS = 32
VARIABLE_TRACKING_TOKENS = 30
NUM_TRAILS = 3
"""One right, two false."""


def chain_cases(
    setup: Setup, lengths: Sequence[int], samples: int, question_at: Sequence[QuestionAt] = ("end",)
) -> list[Case]:
    """Three facts in three places: who lives where, which house keeps that town's archive, which code opens the
    house."""
    return [
        Case(
            task="chain_3",
            length=length,
            sample=sample,
            question_at=place,
            build=lambda length=length, sample=sample, place=place: _chain(setup, length, sample, place),
        )
        for length in sorted(lengths)
        for place in question_at
        for sample in range(samples)
    ]


def _chain(setup: Setup, length: int, sample: int, question_at: QuestionAt) -> Question:
    rng = random_for(setup.seed, "chain_3", length, sample)
    taken = set[str]()
    trails = [_trail(rng, taken) for _ in range(NUM_TRAILS)]
    person, code, _ = trails[0]
    facts = [fact for _, _, trail in trails for fact in trail]
    rng.shuffle(facts)
    question = (
        f"What is the door code of the house that keeps the archive of the town where {person} lives? "
        "Answer with the code and nothing else."
    )

    def prompt(text: str) -> str:
        instruction = "Read the following text; you will be asked about facts that are scattered in it."
        laid = lay_out(text, question, question_at=question_at, instruction=instruction)
        return laid + setup.opening("The door code is")

    max_tokens = setup.answer_room(length, CHAIN_TOKENS)
    text = fill(
        "chain_3", setup.haystack(rng), facts, scattered(rng, len(facts)), prompt, setup.count, length - max_tokens
    )
    return Question(prompt=prompt(text), expected=(code,), grade=whole_words, max_tokens=max_tokens)


def _trail(rng: Random, taken: set[str]) -> tuple[str, str, tuple[str, ...]]:
    """``(person, code, facts)``"""
    person, town, house = (coined(rng, taken).capitalize() for _ in range(3))
    code = str(rng.randrange(1000, 10_000))
    while code in taken:
        code = str(rng.randrange(1000, 10_000))
    taken.add(code)
    return person, code, (
        f"{person} lives in the town of {town}.",
        f"The archive of {town} is kept in {house} House.",
        f"The door code of {house} House is {code}.",
    )  # fmt: skip


def variable_tracking(setup: Setup, length: int, sample: int, *, num_hops: int = 4) -> Question:
    """RULER's `vt`: one variable is given a value, ``num_hops`` others each the one before; all are asked for."""
    rng = random_for(setup.seed, "vt", length, sample)
    names = list[str]()
    while len(names) <= num_hops:
        name = "".join(rng.choices(string.ascii_uppercase, k=5))
        if name not in names:
            names.append(name)
    value = str(rng.randrange(10_000, 100_000))
    assignments = [f"VAR {names[0]} = {value}."]
    assignments += [f"VAR {name} = VAR {before}." for before, name in pairwise(names)]

    def prompt(text: str) -> str:
        laid = lay_out(
            text,
            f"Which variables have the value {value}, directly or by assignment from another variable in the text? "
            f"There are {len(names)}. Answer with their names, separated by commas, and nothing else.",
            instruction="The following text hides assignments of variables. Track which variable gets which value.",
        )
        return laid + setup.opening(f"The {len(names)} variables with the value {value} are:")

    max_tokens = setup.answer_room(length, VARIABLE_TRACKING_TOKENS)
    depths = scattered(rng, len(assignments))
    text = fill("vt", noise(rng), assignments, depths, prompt, setup.count, length - max_tokens)
    return Question(prompt=prompt(text), expected=tuple(names), grade=string_match_all, max_tokens=max_tokens)
