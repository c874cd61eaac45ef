"""What warmup does to sharpness: lambda_max of the Hessian as AdamW sees it, beside the most that its peak rate bears.

Adam's steps are stable along a direction while its preconditioned curvature is below 2 (1 + b1) / ((1 - b1) rate)
(arXiv 2207.14484). At the start that curvature is said to be far above, which is why a rate that is fine later throws a
fresh model off (arXiv 2406.09405). Measured on one batch that is not trained on, after steps 1, 2, 4, … of three runs:
at the peak rate at once, with warmup, and with weights held still, whose second moments alone settle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wootz.training.curvature import ceiling, sharpness
from wootz.training.fit import language_loss
from wootz.training.optimizers import OptimizerConfig, build_optimizer
from wootz.training.schedules import ScheduleConfig, build_schedule
from wootz.training.studies.optimizers import NOTHING_LEARNT, SMALL, learn
from wootz.training.studies.parts import held_out_bits
from wootz.training.studies.positions import Size, build
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import corpus, training_rows

STILL = "weights held still"
BETAS = (0.9, 0.95)


def warmup_study(
    *, size: Size = SMALL, learning_rate: float = 0.01, warmup: float = 0.2, text: Path | None = None
) -> Study:
    """Preconditioned sharpness, as a share of the peak rate's ceiling, by steps made."""
    warm = f"warmup over {warmup:.0%}"
    shares = {"no warmup": 0.0, warm: warmup, STILL: 0.0}
    bits: dict[tuple[str, int], float] = {}

    def run(variant: str, seed: int) -> Curve:
        torch.manual_seed(seed)
        model = build(size)
        optimizer = build_optimizer(model, OptimizerConfig(learning_rate=learning_rate, betas=BETAS, weight_decay=0.0))
        rows = training_rows(corpus(text), size.batch_size, size.length, seed)
        seen = next(training_rows(corpus(text), 2 * size.batch_size, size.length, seed + 1000))
        schedule = build_schedule(ScheduleConfig(name="constant", warmup=shares[variant] * size.steps), size.steps)
        limit, curve = ceiling(learning_rate, momentum=BETAS[0], adam=True), Curve()

        def loss_of() -> torch.Tensor:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # has a second derivative
                return language_loss(model, seen)

        def look(step: int) -> None:
            made = step + 1
            if made & (made - 1) == 0 or made == size.steps:
                curve[str(made)] = sharpness(loss_of, list(model.parameters()), optimizer, iterations=15) / limit

        still = variant == STILL
        try:
            learn(model, rows, optimizer, (lambda step: 0.0) if still else schedule, size.steps, after_step=look)
            bits[variant, seed] = held_out_bits(model.eval(), size, text)
        except FloatingPointError:
            bits[variant, seed] = NOTHING_LEARNT
        return curve

    def notes(variant: str, seed: int) -> dict[str, Any]:
        return {"bits per byte": bits[variant, seed]}

    return Study(
        name="warmup",
        question=f"AdamW at {learning_rate:g}: how sharp is it, of what the rate bears?",
        variants=tuple(shares),
        x="steps made",
        y="sharpness, as a share of the ceiling",
        settings={
            **vars(size), "rate": learning_rate, "warmup": warmup, "text": str(text or "standard library"),
        },
        run=run,
        notes=notes,
        log_y=True,
        references=(STILL,),
    )  # fmt: skip
