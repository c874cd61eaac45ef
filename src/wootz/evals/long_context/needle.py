"""Needles in a haystack: one (Kamradt 2023), many, and the eight retrieval tasks of RULER, from one description.

A needle is a sentence that gives a key its magic value; the question asks for the values of one or more keys. What
varies is the text around it, what keys and values are made of, and how many there are (Hsieh et al. 2024, table 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Literal

from wootz.evals.long_context.case import Case, Grade, Question, QuestionAt, random_for, string_match_all, whole_words
from wootz.evals.long_context.fitting import CountTokens, fit
from wootz.evals.long_context.haystack import Haystack, noise, scattered
from wootz.evals.long_context.layout import lay_out
from wootz.evals.long_context.setup import Setup
from wootz.evals.long_context.words import key_words, uuid

RETRIEVAL_TOKENS = 128
"""RULER's limit for the answers of its retrieval tasks."""


@dataclass(frozen=True, kw_only=True)
class NeedleTask:
    """``num_keys`` needles' keys, ``num_values`` values for each, ``num_queries`` of the keys asked for. In a haystack
    of "needles", everything but the asked needle is a needle of another key."""

    name: str
    haystack: Literal["noise", "essay", "needles"] = "essay"
    keys: Literal["words", "uuids"] = "words"
    values: Literal["numbers", "uuids"] = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    grade: Grade = string_match_all

    def question(
        self, setup: Setup, length: int, sample: int, depth: float | None = None, question_at: QuestionAt = "end"
    ) -> Question:
        """The same needles and haystack whatever the depth and the question's place, so that only those differ."""
        rng = random_for(setup.seed, self.name, length, sample)
        keys = key_words(rng) if self.keys == "words" else _uuids(rng)
        wanted = list(islice(keys, max(self.num_keys, self.num_queries)))
        values = {key: [self.value(rng) for _ in range(self.num_values)] for key in wanted}
        asked = rng.sample(wanted, self.num_queries)
        needles = [self.needle(key, value) for key in wanted for value in values[key]]
        rng.shuffle(needles)
        depths = scattered(rng, len(needles)) if depth is None else [depth] * len(needles)
        max_tokens = setup.answer_room(length, RETRIEVAL_TOKENS)
        budget = length - max_tokens
        expected = tuple(value for key in asked for value in values[key])
        verb = "is" if len(expected) == 1 else "are"
        opening = setup.opening(f"The special magic {self._plural(len(expected))} for {_listed(asked)} {verb}")

        def prompt(text: str) -> str:
            instruction = f"The following text hides special magic {self.values}. You will be asked for some of them."
            return lay_out(text, self._ask(asked), question_at=question_at, instruction=instruction) + opening

        if self.haystack == "needles":
            others = _Distractors(rng, keys, self)
            size = fit(self.name, lambda n: prompt(others.around(n, needles, depths)), setup.count, budget)
            text = others.around(size, needles, depths)
        else:
            haystack = (noise if self.haystack == "noise" else setup.haystack)(rng)
            text = fill(self.name, haystack, needles, depths, prompt, setup.count, budget)
        return Question(prompt=prompt(text), expected=expected, grade=self.grade, max_tokens=max_tokens)

    def value(self, rng: Random) -> str:
        return str(rng.randrange(10**6, 10**7)) if self.values == "numbers" else uuid(rng)

    def needle(self, key: str, value: str) -> str:
        return f"One of the special magic {self.values} for {key} is: {value}."

    def _plural(self, count: int) -> str:
        return self.values if count > 1 else self.values.removesuffix("s")

    def _ask(self, keys: Sequence[str]) -> str:
        count = len(keys) * self.num_values
        verb, all_ = ("is", "") if count == 1 else ("are", "all ")
        only = "it" if count == 1 else "them, separated by commas,"
        return (
            f"What {verb} {all_}the special magic {self._plural(count)} for {_listed(keys)} mentioned in the text? "
            f"Answer with {only} and nothing else."
        )


class _Distractors:
    """Needles of other keys, made when first asked for, so that a longer text begins with the shorter one's."""

    def __init__(self, rng: Random, keys: Iterator[str], task: NeedleTask) -> None:
        self._rng, self._keys, self._task = rng, keys, task
        self._made: list[str] = []

    def around(self, count: int, needles: Sequence[str], depths: Sequence[float]) -> str:
        while len(self._made) < count:
            self._made.append(self._task.needle(next(self._keys), self._task.value(self._rng)))
        lines = self._made[:count]
        for depth, needle in sorted(zip(depths, needles, strict=True), reverse=True):
            lines.insert(round(depth * count), needle)
        return "\n".join(lines)


def fill(
    task: str,
    haystack: Haystack,
    needles: Sequence[str],
    depths: Sequence[float],
    prompt: Callable[[str], str],
    count: CountTokens,
    budget: int,
) -> str:
    """Needles in as much of the haystack as makes ``prompt(text)`` exactly ``budget`` tokens long.

    Whole words leave a gap of a few tokens, which padding fills: exact for a tokenizer, nearly so for an estimate.
    """
    size = fit(task, lambda n: prompt(haystack.text(n, needles, depths)), count, budget)
    gap = budget - count(prompt(haystack.text(size, needles, depths)))
    while gap > 0 and count(prompt(haystack.text(size, needles, depths, padding=gap))) > budget:
        gap -= 1
    return haystack.text(size, needles, depths, padding=gap)


def needle_cases(
    setup: Setup,
    lengths: Sequence[int],
    depths: Sequence[float],
    samples: int,
    question_at: Sequence[QuestionAt] = ("end",),
) -> list[Case]:
    """One needle at each depth of each length: the heatmap."""
    task = NeedleTask(name="needle", grade=whole_words)
    return [
        _case(setup, task, length, sample, depth, place)
        for length in sorted(lengths)
        for depth in depths
        for place in question_at
        for sample in range(samples)
    ]


def multi_needle_cases(
    setup: Setup,
    lengths: Sequence[int],
    counts: Sequence[int],
    samples: int,
    question_at: Sequence[QuestionAt] = ("end",),
) -> list[Case]:
    """``k`` facts about ``k`` keys, all asked for at once: the score is the share that is returned, `strict` asks for
    all."""
    tasks = [NeedleTask(name=f"needles_{k}", num_queries=k, grade=whole_words) for k in counts]
    return [
        _case(setup, task, length, sample, None, place)
        for length in sorted(lengths)
        for task in tasks
        for place in question_at
        for sample in range(samples)
    ]


def _case(
    setup: Setup, task: NeedleTask, length: int, sample: int, depth: float | None, question_at: QuestionAt
) -> Case:
    return Case(
        task=task.name,
        length=length,
        sample=sample,
        depth=depth,
        question_at=question_at,
        build=lambda: task.question(setup, length, sample, depth, question_at),
    )


def _uuids(rng: Random) -> Iterator[str]:
    while True:
        yield uuid(rng)


def _listed(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
