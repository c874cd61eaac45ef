"""What is inside a mixture of experts: one that everybody visits, how many and how large, and how much fits into each.

All models here put every token through the same number of weights, so they cost the same per token; they differ in what
the router may choose from. Experts are kept busy by the auxiliary loss unless the variant's name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from wootz.models import Decoder
from wootz.models.routing import RoutingReport, balance_loss, watch_routing
from wootz.training.fit import FitConfig, fit
from wootz.training.studies.parts import held_out_bits
from wootz.training.studies.positions import Size, build
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import corpus, training_rows

SMALL = Size(width=64, layers=2, steps=200)
BALANCED = 0.01
"""The auxiliary loss's share."""
MIXTURES = {
    "dense": (0, 0, 2, 1),
    "8, top 2": (8, 2, 0, 1),
    "7, top 1, 1 shared": (7, 1, 1, 1),
    "16 of half the size, top 4": (16, 4, 0, 2),
    "15 of half the size, top 3, 1 shared": (15, 3, 1, 2),
}
"""Routed experts, how many of them for each token, shared ones, and by how much each is narrower."""


def shared_expert_studies(
    *, variants: tuple[str, ...] = tuple(MIXTURES), size: Size = SMALL, every: int = 50, text: Path | None = None
) -> tuple[Study, Study]:
    """Fine-grained and shared experts (arXiv 2401.06066) at equal active and total parameters: held-out loss, and how
    undecided the routers are. Both studies read the same models."""
    models = {name: (mixture(*MIXTURES[name], size=size), BALANCED if MIXTURES[name][0] else 0.0) for name in variants}
    runs = _Runs(models, size, every, text)
    shared: dict[str, Any] = {"x": "step", "settings": runs.settings, "log_x": False}
    bits = Study(
        name="experts",
        question="The same weights per token, divided among experts",
        variants=variants,
        y="bits per byte, held out",
        run=lambda variant, seed: runs.of(variant, seed)["bits"],
        **shared,
    )
    entropy = Study(
        name="experts-entropy",
        question="How undecided is a token's router?",
        variants=tuple(name for name in variants if MIXTURES[name][0]),
        y="entropy of its probabilities / log(experts)",
        run=lambda variant, seed: runs.of(variant, seed)["token entropy"],
        **shared,
    )
    return bits, entropy


def mixture(experts: int, top_k: int, shared: int, finer: int, *, size: Size) -> dict[str, Any]:
    """Settings of the family `wootz`; a whole expert is as wide as the model."""
    width = size.width // finer
    if not experts:
        return {"ffn": "swiglu", "intermediate_size": shared * width}
    words = f"moe:{experts}x{top_k}" + (f"+{shared}" if shared else "")
    return {"ffn": words, "intermediate_size": width, "router_gates": "softmax"}


def capacity_studies(
    *,
    factors: tuple[float, ...] = (0.5, 1.0, 1.25, 2.0),
    experts: int = 8,
    top_k: int = 2,
    size: Size = SMALL,
    every: int = 50,
    text: Path | None = None,
) -> tuple[Study, Study]:
    """Experts that take ``factor * T * k / E`` tokens of a training batch and turn the rest away (arXiv 2101.03961):
    how many choices are dropped, and what that costs. Held-out text is read without a limit, as models are served."""
    settings = mixture(experts, top_k, 0, 1, size=size)
    variants = {f"capacity {factor:g}": (settings | {"router_capacity_factor": factor}, BALANCED) for factor in factors}
    variants["capacity 1, unbalanced"] = settings | {"router_capacity_factor": 1.0}, 0.0
    variants["unlimited"] = settings, BALANCED
    runs = _Runs(variants, size, every, text)
    shared: dict[str, Any] = {
        "x": "step",
        "variants": tuple(variants),
        "settings": runs.settings,
        "log_x": False,
        "references": ("unlimited",),
    }
    drops = Study(
        name="capacity",
        question=f"{experts} experts, {top_k} per token: how many choices find their expert full?",
        y="share of choices dropped",
        run=lambda variant, seed: runs.of(variant, seed)["drop rate"],
        **shared,
    )
    bits = Study(
        name="capacity-bits",
        question=f"{experts} experts, {top_k} per token: what does a limit cost?",
        y="bits per byte, held out",
        run=lambda variant, seed: runs.of(variant, seed)["bits"],
        **shared,
    )
    return drops, bits


class _Runs:
    """Models of several studies, each trained once. ``models``: settings, and how much of the auxiliary loss."""

    def __init__(
        self, models: Mapping[str, tuple[dict[str, Any], float]], size: Size, every: int, text: Path | None
    ) -> None:
        self.models, self.size, self.every, self.text = models, size, every, text
        self.settings = {
            **vars(size),
            "every": every,
            "models": {name: settings | {"balance_loss": balance} for name, (settings, balance) in models.items()},
            "text": str(text or "standard library"),
        }
        self._done: dict[tuple[str, int], dict[str, Curve]] = {}

    def of(self, variant: str, seed: int) -> dict[str, Curve]:
        if (variant, seed) not in self._done:
            settings, balance = self.models[variant]
            torch.manual_seed(seed)
            model = build(self.size, **settings)
            self._done[variant, seed] = measured(model, self.size, seed, self.text, every=self.every, balance=balance)
        return self._done[variant, seed]


def measured(
    model: Decoder, size: Size, seed: int, text: Path | None, *, every: int, balance: float
) -> dict[str, Curve]:
    """Train, and look every so many steps: held-out "bits", and of the routers, if there are any, the means of "token
    entropy" and "drop rate" in the batch just trained on."""
    curves: dict[str, Curve] = {"bits": {}, "token entropy": {}, "drop rate": {}}
    with watch_routing(model) as routings:

        def after_step(step: int) -> None:
            if (step + 1) % every and step:
                return
            if reports := [RoutingReport.of(routing) for routing in routings.values()]:
                curves["token entropy"][str(step + 1)] = fmean(report.token_entropy for report in reports)
                curves["drop rate"][str(step + 1)] = fmean(report.drop_rate for report in reports)
            model.eval()
            curves["bits"][str(step + 1)] = held_out_bits(model, size, text)
            model.train()

        fit(
            model,
            training_rows(corpus(text), size.batch_size, size.length, seed),
            FitConfig(steps=size.steps),
            extra_loss=(lambda: balance * balance_loss(routings)) if balance else None,
            after_step=after_step,
        )
    return curves
