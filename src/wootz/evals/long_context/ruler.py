"""The 13 tasks of RULER (Hsieh et al. 2024, https://arxiv.org/abs/2404.06654), at any length.

Names, parameters, answer limits and metrics are the paper's. Ours are the essays, the vocabulary, the wording around
the needles, and the documents of the QA tasks unless a SQuAD file is given: so a score compares models and lengths with
each other, not with the paper's table. A chat gets no opening of the answer; a plain continuation does, as in the
paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from wootz.core import BadRequestError
from wootz.evals.long_context.aggregation import common_words, frequent_words
from wootz.evals.long_context.case import Case, Question
from wootz.evals.long_context.chain import variable_tracking
from wootz.evals.long_context.needle import NeedleTask
from wootz.evals.long_context.reading import ExerciseMaker, invented_founder, invented_place, qa
from wootz.evals.long_context.setup import Setup

RETRIEVAL = (
    NeedleTask(name="niah_single_1", haystack="noise"),
    NeedleTask(name="niah_single_2"),
    NeedleTask(name="niah_single_3", values="uuids"),
    NeedleTask(name="niah_multikey_1", num_keys=4),
    NeedleTask(name="niah_multikey_2", haystack="needles"),
    NeedleTask(name="niah_multikey_3", haystack="needles", keys="uuids", values="uuids"),
    NeedleTask(name="niah_multivalue", num_values=4),
    NeedleTask(name="niah_multiquery", num_queries=4),
)

Builder = Callable[[Setup, int, int], Question]
"""``(setup, length, sample) -> question``"""


def ruler_tasks(single_hop: ExerciseMaker = invented_place) -> Mapping[str, Builder]:
    """The 13 by name, in the paper's order; ``single_hop`` makes the exercises of `qa_1`."""
    return {
        **{task.name: task.question for task in RETRIEVAL},
        "vt": variable_tracking,
        "cwe": common_words,
        "fwe": frequent_words,
        "qa_1": partial(qa, name="qa_1", make=single_hop),
        "qa_2": partial(qa, name="qa_2", make=invented_founder),
    }


def ruler_cases(
    setup: Setup,
    lengths: Sequence[int],
    samples: int,
    tasks: Sequence[str] = (),
    single_hop: ExerciseMaker = invented_place,
) -> list[Case]:
    """``samples`` questions of each task (by default all 13) at each length."""
    builders = ruler_tasks(single_hop)
    unknown = [name for name in tasks if name not in builders]
    if unknown:
        raise BadRequestError(f'RULER has no task "{unknown[0]}"', hint=f"there is {', '.join(builders)}")
    return [
        Case(
            task=name,
            length=length,
            sample=sample,
            build=partial(builders[name], setup, length, sample),
        )
        for length in sorted(lengths)
        for name in tasks or builders
        for sample in range(samples)
    ]
