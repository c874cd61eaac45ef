"""Scout runs: the recipe at small sizes and lengths, a law fitted to them, and how far it was right about a larger one.

Every cell is a run of its own with the whole schedule, since a loss read off the middle of a longer run has not seen
its learning rate fall. All widths use the rate that is best for the narrowest, by muP.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wootz.models import Decoder
from wootz.models.planning.accounting import count_parameters
from wootz.training.fit import FitConfig, fit, losses_by_position
from wootz.training.planning.scaling_laws import Fit, Run, fit_law
from wootz.training.studies.mup import SMALL, at_width
from wootz.training.studies.positions import Size
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import corpus, held_out_rows, training_rows

RATE = 2.0**-6


def scout_study(
    *,
    widths: tuple[int, ...] = (16, 24, 32, 48, 64),
    steps: tuple[int, ...] = (50, 100, 200, 400),
    size: Size = SMALL,
    text: Path | None = None,
) -> Study:
    """Held-out loss in nats per byte over the tokens trained on, for each width."""

    def run(variant: str, seed: int) -> Curve:
        width = int(variant.removeprefix("width "))
        curve: Curve = {}
        for number in steps:
            torch.manual_seed(seed)
            model, mup = at_width(width, replace(size, width=widths[0]), mup=True)
            assert mup is not None
            rows = training_rows(corpus(text), size.batch_size, size.length, seed)
            config = FitConfig(steps=number, learning_rate=RATE, warmup=min(20, number // 4))
            fit(model, rows, config, groups=mup.groups(model))
            losses = losses_by_position(model, held_out_rows(corpus(text), 64, size.length))
            curve[str(number * size.batch_size * size.length)] = losses.mean().item()
        return curve

    return Study(
        name="scouts",
        question="How does the loss fall with parameters and tokens?",
        variants=tuple(f"width {width}" for width in widths),
        x="tokens",
        y="nats per byte, held out",
        settings={**vars(size), "widths": widths, "counts": steps, "text": str(text or "standard library")},
        run=run,
    )


def runs_of(report: dict[str, Any]) -> list[Run]:
    """A report's means as runs; parameters are those a token is multiplied with, of which the head is one."""
    size = SMALL
    found = []
    for variant, curve in report["curves"].items():
        settings = {key: report["settings"][key] for key in vars(size)}
        with torch.device("meta"):
            model, _ = at_width(int(variant.removeprefix("width ")), Size(**settings), mup=False)
        assert isinstance(model, Decoder)
        parameters = count_parameters(model).multiplied
        found += [Run(parameters, int(tokens), point["mean"]) for tokens, point in curve.items()]
    return found


@dataclass(frozen=True)
class Extrapolation:
    """The largest run, forecast by a law that has not seen any of its size or its length."""

    fit: Fit
    target: Run
    forecast: float
    low: float
    high: float

    @property
    def error(self) -> float:
        return self.forecast / self.target.loss - 1


def extrapolate(runs: list[Run], *, resamples: int = 50) -> Extrapolation:
    """Raises `BadRequestError` if what is left is too little for a law."""
    target = max(runs, key=lambda run: (run.parameters, run.tokens))
    scouts = [run for run in runs if run.parameters < target.parameters and run.tokens < target.tokens]
    fit_ = fit_law(scouts, resamples=resamples)
    return Extrapolation(fit_, target, *fit_.forecast(target.parameters, target.tokens))
