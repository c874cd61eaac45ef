"""Schedules on small language models: cosine, WSD and none at all, and what each costs when the run is to go on.

A cosine of twice the length is another run from its first step. A WSD run goes on from its checkpoint before the
cooldown: the second half only. Schedule-Free can be judged, and gone on with, at any step.

Beside them a toy: weights under AdamW with random gradients settle where decay and noise balance, at an RMS of
sqrt(rate / (2 decay)) (arXiv 2305.17212), and so not at a size that does not depend on the rate.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from wootz.training.optimizers import OptimizerConfig, build_optimizer, evaluation_mode
from wootz.training.schedules import ScheduleConfig, build_schedule, extended
from wootz.training.studies.optimizers import SMALL, learn
from wootz.training.studies.parts import held_out_bits
from wootz.training.studies.positions import Size, build
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import corpus, training_rows

LONGER = "twice as long"
EXTENDED = "WSD, gone on with"


def schedule_study(
    *, size: Size = SMALL, learning_rate: float = 0.01, every: int = 0, cooldown: float = 0.2, text: Path | None = None
) -> Study:
    """Held-out bits per byte by step, of runs of ``size.steps`` and of twice as many."""
    every = every or max(1, size.steps // 10)

    def run(variant: str, seed: int) -> Curve:
        steps = size.steps * (2 if LONGER in variant or variant in (EXTENDED, "Schedule-Free") else 1)
        name = "schedule-free" if variant == "Schedule-Free" else "adamw"
        torch.manual_seed(seed)
        model = build(size)
        optimizer = build_optimizer(model, OptimizerConfig(name=name, learning_rate=learning_rate))
        rows = training_rows(corpus(text), size.batch_size, size.length, seed)
        curve: Curve = {}

        def judge(step: int) -> None:
            if (step + 1) % every == 0:
                with evaluation_mode(optimizer):
                    curve[str(step + 1)] = held_out_bits(model, size, text)

        schedule = build_schedule(_config(variant, size, cooldown), steps)
        learn(model, rows, optimizer, schedule, steps, after_step=judge)
        return curve

    return Study(
        name="schedules",
        question=f"A run of {size.steps} steps, and the same run gone on with",
        variants=("cosine", f"cosine, {LONGER}", "WSD", EXTENDED, "Schedule-Free"),
        x="step",
        y="bits per byte",
        settings={**vars(size), "rate": learning_rate, "cooldown": cooldown, "text": str(text or "standard library")},
        run=run,
        log_x=False,
    )


def _config(variant: str, size: Size, cooldown: float) -> ScheduleConfig:
    if variant == "Schedule-Free":
        return ScheduleConfig(name="constant", warmup=0.1 * size.steps)
    if variant.startswith("cosine"):
        return ScheduleConfig(name="cosine", warmup=0.1 * size.steps)
    wsd = ScheduleConfig(name="wsd", warmup=0.1, cooldown=cooldown)
    return extended(wsd, size.steps, 2 * size.steps) if variant == EXTENDED else wsd


def equilibrium_study(
    *,
    decays: tuple[float, ...] = (0.05, 0.1, 0.2),
    rates: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04),
    num_weights: int = 2000,
) -> Study:
    """RMS of weights that see nothing but noise, once it has settled, by rate and decay."""

    def run(variant: str, seed: int) -> Curve:
        if variant == "sqrt(rate / 0.2)":
            return {f"{rate:g}": math.sqrt(rate / 0.2) for rate in rates}
        return {
            f"{rate:g}": settled_size(rate, float(variant.removeprefix("decay ")), num_weights, seed) for rate in rates
        }

    return Study(
        name="equilibrium",
        question="Where decay and noise balance: weights under AdamW and random gradients",
        variants=(*(f"decay {decay:g}" for decay in decays), "sqrt(rate / 0.2)"),
        x="learning rate",
        y="RMS of the weights",
        settings={"num_weights": num_weights, "rates": list(rates)},
        run=run,
        log_y=True,
        references=("sqrt(rate / 0.2)",),
    )


def settled_size(rate: float, decay: float, num_weights: int, seed: int) -> float:
    """After two time constants of 1 / (rate * decay) steps (squares settle by exp(-2) in each half), over a third."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.zeros(num_weights, 1))
    config = OptimizerConfig(name="adamw", learning_rate=rate, weight_decay=decay, betas=(0.9, 0.99))
    optimizer = build_optimizer([weight], config)
    constant = round(1 / (rate * decay))
    squares = []
    for step in range(3 * constant):
        weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
        if step >= 2 * constant:
            squares.append(weight.detach().square().mean().item())
    return math.sqrt(sum(squares) / len(squares))
