"""Long texts from the start, or a model of short ones stretched afterwards? The same tokens, two ways to spend them.

Every step trains on the same number of tokens, so a step of rows four times as long has a quarter of them. What differs
is when the long rows come, and that attention costs more in them: the report's settings hold the arithmetic per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import torch

from wootz.data.batch import Batch
from wootz.models.planning.accounting import token_flops
from wootz.training.fit import FitConfig, fit
from wootz.training.studies.positions import Size, build, perplexities, scaled
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import corpus, training_rows

STRETCHED = "short, then YaRN and long"
SCHEDULES = ("short only", STRETCHED, "mixed from the start", "longer and longer")
SMALL = Size(width=64, layers=2, steps=300)


def long_context_study(*, size: Size = SMALL, factor: int = 4, share: float = 0.25, text: Path | None = None) -> Study:
    """Shown rows of L and, in ``share`` of the steps, of ``factor`` L: how well does a model read short and long?"""
    reach = [*shorter_than(factor), factor]

    def run(variant: str, seed: int) -> Curve:
        torch.manual_seed(seed)
        plan = lengths(variant, size.steps, factor, share)
        rows = rows_of(plan, size, seed, text)
        if variant != STRETCHED:
            model = build(size, max_position_embeddings=size.length * factor)
            fit(model, rows, FitConfig(steps=size.steps))
        else:
            short_steps = plan.count(1)
            model = build(size)
            fit(model, rows, FitConfig(steps=short_steps))
            model = scaled(model, factor, "yarn")
            fit(model, rows, FitConfig(steps=size.steps - short_steps, learning_rate=1e-3, warmup=5))
        return perplexities(model, [size.length * times for times in reach], text)

    return Study(
        name="long-context",
        question=f"{size.steps} steps, {share:.0%} of them on rows of {size.length * factor} bytes: when?",
        variants=SCHEDULES,
        x="length read",
        y="perplexity per byte, last quarter",
        settings={
            **vars(size),
            "factor": factor,
            "share": share,
            "text": str(text or "standard library"),
            "training_flops_per_token": {
                variant: training_flops_per_token(lengths(variant, size.steps, factor, share), size)
                for variant in SCHEDULES
            },
        },
        run=run,
        log_y=True,
        references=("short only",),
    )


def lengths(variant: str, steps: int, factor: int, share: float) -> list[int]:
    """Of each step's rows, as multiples of L. All but "short only" have the same number of steps at ``factor``."""
    num_long = round(steps * share)
    if variant == "short only":
        return [1] * steps
    if variant == STRETCHED:
        return [1] * (steps - num_long) + [factor] * num_long
    if variant == "mixed from the start":
        return [factor if (step + 1) * num_long // steps > step * num_long // steps else 1 for step in range(steps)]
    shorter = shorter_than(factor)  # the rest of the steps is divided among these
    stages = [shorter[step * len(shorter) // (steps - num_long)] for step in range(steps - num_long)]
    return stages + [factor] * num_long


def shorter_than(factor: int) -> list[int]:
    return [2**power for power in range(math.ceil(math.log2(factor)))]


def rows_of(plan: list[int], size: Size, seed: int, text: Path | None) -> Iterator[Batch]:
    sources = {
        times: training_rows(corpus(text), max(1, size.batch_size // times), size.length * times, seed + times)
        for times in set(plan)
    }
    for times in plan:
        yield next(sources[times])


def training_flops_per_token(plan: list[int], size: Size) -> float:
    """Forward, and twice that backward; a token looks at half of its row on average."""
    model = build(size)
    return fmean(3 * token_flops(model, size.length * times // 2).total for times in plan)
