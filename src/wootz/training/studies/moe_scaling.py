"""What more parameters are worth when no token visits more of them: experts, at one cost per token.

Every model here puts each token through the same number of weights. The axes are how many there are to choose from
(total over active parameters) and how finely they are cut: few large experts, or twice as many of half the size of
which each token takes twice as many.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from wootz.models.planning.accounting import count_parameters
from wootz.models.routing import balance_loss, watch_routing
from wootz.training.fit import FitConfig, fit
from wootz.training.studies.experts import BALANCED, mixture
from wootz.training.studies.parts import held_out_bits
from wootz.training.studies.positions import Size, build
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import corpus, training_rows

SMALL = Size(width=64, layers=2, length=64, steps=400)
GRAINS = {"whole experts": 1, "of half the size": 2, "of a quarter": 4}


def moe_scaling_study(
    *,
    experts: tuple[int, ...] = (1, 2, 4, 8, 16),
    grains: tuple[str, ...] = tuple(GRAINS),
    size: Size = SMALL,
    text: Path | None = None,
) -> Study:
    """Held-out loss over total / active parameters. One expert is the dense model, which has no grain; a token visits
    two whole ones' worth of weights."""

    @cache
    def measured(number: int, finer: int, seed: int) -> tuple[str, float]:
        torch.manual_seed(seed)
        routed = 2 * number * finer
        model = build(size, **mixture(*((routed, 2 * finer, 0, finer) if number > 1 else (0, 0, 2, 1)), size=size))
        rows = training_rows(corpus(text), size.batch_size, size.length, seed)
        with watch_routing(model) as routings:
            extra = (lambda: BALANCED * balance_loss(routings)) if number > 1 else None
            fit(model, rows, FitConfig(steps=size.steps), extra_loss=extra)
        return f"{count_parameters(model).sparsity:.3g}", held_out_bits(model, size, text)

    def run(variant: str, seed: int) -> Curve:
        return dict(measured(number, GRAINS[variant] if number > 1 else 1, seed) for number in experts)

    return Study(
        name="moe-scaling",
        question="Experts to choose from, at one cost per token",
        variants=grains,
        x="total / active parameters",
        y="bits per byte, held out",
        settings={**vars(size), "experts": experts, "text": str(text or "standard library")},
        run=run,
    )
