"""An anneal: what the last part of a run is worth, by whether its rate decays and by what it reads.

Most of a run reads a broad mixture at a constant rate; the last part may lower the rate (the cooldown of WSD, arXiv
2404.06395), read more of a good source (Llama 3, arXiv 2407.21783), or both. All that differ in the last part only
share the run up to there, and go on from its weights and its optimiser's state with the rows that would have come next.
One more run reads as much of the good source, but spread over its whole length: is it better late?
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wootz.data.batch import Batch
from wootz.models import Decoder
from wootz.training.optimizers import OptimizerConfig, build_optimizer, set_rate
from wootz.training.schedules import ScheduleConfig, build_schedule
from wootz.training.studies.optimizers import learn
from wootz.training.studies.parts import bits_of_rows
from wootz.training.studies.positions import Size, build
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import corpus, held_out_rows, prose, training_rows

SMALL = Size(width=64, layers=2, length=64, steps=1000)
AS_BEFORE, DECAYED, BOTH, GOOD_SOURCE, SPREAD = VARIANTS = (
    "as before",
    "rate decayed",
    "decayed, good source",
    "good source, not decayed",
    "good source all along, decayed",
)


def anneal_studies(
    *,
    size: Size = SMALL,
    learning_rate: float = 0.01,
    last: float = 0.2,
    share: float = 0.05,
    late_share: float = 0.5,
    every: int = 0,
    text: Path | None = None,
    good_text: Path | None = None,
) -> tuple[Study, Study]:
    """Held-out bits per byte of the good text (English about Python) and of the general one (Python's sources), by
    step. Rows are of the good text with probability ``share``, and in the ``last`` part of the steps, where it is
    anneal to read it, ``late_share``. Both studies read the same models."""
    first = size.steps - round(last * size.steps)
    every = every or max(1, size.steps // 20)
    decaying = build_schedule(ScheduleConfig(name="wsd", warmup=0.05, cooldown=last), size.steps)
    constant = build_schedule(ScheduleConfig(name="constant", warmup=0.05), size.steps)

    @cache
    def texts() -> dict[str, Tensor]:
        return {"good": prose() if good_text is None else corpus(good_text), "general": corpus(text)}

    def fresh(model: Decoder) -> torch.optim.Optimizer:
        return build_optimizer(model, OptimizerConfig(learning_rate=learning_rate))

    def train(
        model: Decoder, optimizer: torch.optim.Optimizer, *, steps: range, share: float, decays: bool, seed: int
    ) -> dict[str, Curve]:
        """Makes these steps of a run. The rows depend on their number, the seed and the share alone."""
        curves: dict[str, Curve] = {name: {} for name in texts()}

        def judge(made: int) -> None:
            step = steps.start + made + 1
            if step % every == 0 or step == size.steps:
                for name, text_N in texts().items():
                    curves[name][str(step)] = bits_of_rows(model, held_out_rows(text_N, 128, size.length))

        rows = mixed_rows(texts()["general"], texts()["good"], share, size.batch_size, size.length, seed)
        schedule = decaying if decays else constant
        learn(
            model, islice(rows, steps.start, None), optimizer, lambda made: schedule(steps.start + made), len(steps),
            after_step=judge,
        )  # fmt: skip
        return curves

    @cache
    def trunk(seed: int) -> tuple[Decoder, dict[str, Any], dict[str, Curve]]:
        torch.manual_seed(seed)
        model = build(size)
        optimizer = fresh(model)
        curves = train(model, optimizer, steps=range(first), share=share, decays=False, seed=seed)
        return model, optimizer.state_dict(), curves

    @cache
    def measured(variant: str, seed: int) -> dict[str, Curve]:
        if variant == SPREAD:
            torch.manual_seed(seed)
            model = build(size)
            evenly = share + last * (late_share - share)
            return train(model, fresh(model), steps=range(size.steps), share=evenly, decays=True, seed=seed)
        model, state, before = deepcopy(trunk(seed))
        optimizer = fresh(model)
        optimizer.load_state_dict(state)
        set_rate(optimizer, learning_rate)
        late = train(
            model,
            optimizer,
            steps=range(first, size.steps),
            share=late_share if variant in (BOTH, GOOD_SOURCE) else share,
            decays=variant in (DECAYED, BOTH),
            seed=seed,
        )
        return {name: curve | late[name] for name, curve in before.items()}

    shared: dict[str, Any] = {
        "variants": VARIANTS,
        "x": "step",
        "y": "bits per byte, held out",
        "settings": {
            **vars(size),
            "rate": learning_rate,
            "last": last,
            "share": share,
            "late_share": late_share,
            "every": every,
            "text": str(text or "standard library"),
            "good_text": str(good_text or "help of Python"),
        },
        "log_x": False,
        "references": (AS_BEFORE, SPREAD),
    }
    good = Study(
        name="anneal",
        question=f"The last {last:.0%} of a run: the good source, {share:.0%} of the rows before",
        run=lambda variant, seed: measured(variant, seed)["good"],
        **shared,
    )
    general = Study(
        name="anneal-general",
        question="… and the rest of the mixture",
        run=lambda variant, seed: measured(variant, seed)["general"],
        **shared,
    )
    return good, general


def mixed_rows(
    general_N: Tensor, good_N: Tensor, share: float, batch_size: int, length: int, seed: int
) -> Iterator[Batch]:
    """For ever; each row is of the good text with probability ``share``. Another share changes which rows are of
    which text, and nothing else: what is good at a small share is so at a larger one."""
    lot = torch.Generator().manual_seed(seed)
    sources = (training_rows(text_N, batch_size, length, seed) for text_N in (general_N, good_N))
    for general, good in zip(*sources, strict=True):
        good_B1 = torch.rand(batch_size, 1, generator=lot) < share
        yield Batch(
            torch.where(good_B1, good.tokens_BT, general.tokens_BT),
            torch.where(good_B1, good.labels_BT, general.labels_BT),
        )
