"""Optimisers and their rates on small language models: which is best when each is tuned alike, and what momentum does
to the best rate.

"Tuned alike" is the point: each optimiser gets equally many learning rates, equally far apart, around where its rates
usually lie for models of this size; everything else (schedule, clipping, data, seeds) is the same. What diverges counts
as nothing learnt, 8 bits per byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from wootz.core.errors import BadRequestError
from wootz.data.batch import Batch, Batches
from wootz.models import Decoder
from wootz.training.curvature_refresh import CurvatureRefresh
from wootz.training.fit import language_loss
from wootz.training.optimizers import OptimizerConfig, build_optimizer, evaluation_mode
from wootz.training.schedules import Schedule, ScheduleConfig, build_schedule
from wootz.training.studies.parts import held_out_bits
from wootz.training.studies.positions import Size, build
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import corpus, training_rows
from wootz.training.trainer import AfterStep, Trainer, TrainerConfig

SMALL = Size(width=48, layers=2, heads=4, length=48, batch_size=8, steps=150)

NOTHING_LEARNT = 8.0
"""Bits per byte of guessing: what a diverged run is worth."""

LOWEST_RATES = {
    "sgd": 0.1,
    "momentum": 0.03,
    "nag": 0.03,
    "adagrad": 0.01,
    "rmsprop": 0.0003,
    "adam": 0.001,
    "adamw": 0.001,
    "adamw-8bit": 0.001,
    "adafactor": 0.01,
    "lion": 0.0001,
    "sophia": 0.0003,
    "schedule-free": 0.001,
    "muon": 0.001,
    "prodigy": 0.3,
}
"""The first of each one's rates; the others are each sqrt(10) times the one before."""


def optimizer_study(
    *, names: tuple[str, ...] = tuple(LOWEST_RATES), num_rates: int = 4, size: Size = SMALL, text: Path | None = None
) -> Study:
    """Held-out bits per byte by learning rate."""
    for name in set(names) - set(LOWEST_RATES):
        raise BadRequestError(f'"{name}" cannot be compared', hint=f"one of {', '.join(LOWEST_RATES)}")

    def run(name: str, seed: int) -> Curve:
        rates = [LOWEST_RATES[name] * 10 ** (number / 2) for number in range(num_rates)]
        return {
            f"{rate:.3g}": bits_after(OptimizerConfig(name=name, learning_rate=rate), size, seed, text)
            for rate in rates
        }

    return Study(
        name="optimizers",
        question=f"{size.steps} steps, {num_rates} rates each: which optimiser?",
        variants=names,
        x="learning rate",
        y="bits per byte",
        settings={**vars(size), "rates": num_rates, "text": str(text or "standard library")},
        run=run,
    )


def momentum_study(
    *,
    betas: tuple[float, ...] = (0.0, 0.5, 0.9, 0.97),
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0),
    size: Size = SMALL,
    text: Path | None = None,
) -> Study:
    """SGD's best rate by momentum: it should fall as 1 - beta, since velocity adds up to 1 / (1 - beta) gradients."""

    def run(variant: str, seed: int) -> Curve:
        config = {"name": "momentum", "momentum": float(variant.removeprefix("momentum "))}
        return {
            f"{rate:.3g}": bits_after(OptimizerConfig(learning_rate=rate, **config), size, seed, text) for rate in rates
        }

    return Study(
        name="momentum",
        question="Momentum and the learning rate are one knob",
        variants=tuple(f"momentum {beta:g}" for beta in betas),
        x="learning rate",
        y="bits per byte",
        settings={**vars(size), "rates": list(rates), "text": str(text or "standard library")},
        run=run,
    )


def bits_after(config: OptimizerConfig, size: Size, seed: int, text: Path | None) -> float:
    """Of held-out text once a fresh model was trained by a cosine; Schedule-Free, which needs no schedule, by none."""
    torch.manual_seed(seed)
    model = build(size)
    course = "constant" if config.name.startswith("schedule-free") else "cosine"
    schedule = build_schedule(ScheduleConfig(name=course, warmup=0.1), size.steps)
    optimizer = build_optimizer(model, config)
    rows = training_rows(corpus(text), size.batch_size, size.length, seed)
    try:
        learn(model, rows, optimizer, schedule, size.steps)
    except FloatingPointError:
        return NOTHING_LEARNT
    with evaluation_mode(optimizer):
        bits = held_out_bits(model.eval(), size, text)
    return min(bits, NOTHING_LEARNT) if math.isfinite(bits) else NOTHING_LEARNT


def learn(
    model: Decoder,
    rows: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    steps: int,
    *,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """A run at the optimiser's rate, by a schedule; gradients are clipped to norm 1. Raises FloatingPointError."""
    Trainer(
        model,
        optimizer,
        schedule,
        cast(Batches, rows),  # never taken up again, so it need not know where it stands
        TrainerConfig(steps=steps),
        objective=language_loss,
        callbacks=[CurvatureRefresh(), AfterStep(after_step)],
    ).run()


def best(curve: Mapping[str, Any]) -> tuple[str, Any]:
    """The rate of the lowest mean, and its figures, of a variant's curve in a report."""
    rate = min(curve, key=lambda x: curve[x]["mean"])
    return rate, curve[rate]
