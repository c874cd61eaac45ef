"""Does muP do what it says? Activations after a few steps, and the best learning rate, in models of several widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wootz.models import Decoder
from wootz.training.fit import FitConfig, fit, predictions
from wootz.training.mup import Mup, apply_mup
from wootz.training.studies.parts import held_out_bits
from wootz.training.studies.positions import Size, build
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import corpus, training_rows

SMALL = Size(width=32, layers=2, heads=4, length=64, batch_size=16, steps=100)
"""The base model; heads grow with the width."""
PARAMETRISATIONS = ("muP", "standard")


def at_width(width: int, size: Size = SMALL, *, mup: bool, **settings: Any) -> tuple[Decoder, Mup | None]:
    """A fresh model, and what was done to it. The standard one is initialised by ``fan_in ** -0.5``, as is usual."""
    settings = {"tie_word_embeddings": False} | settings
    model = build(replace(size, width=width), **settings)
    if not mup:
        return model, None
    with torch.device("meta"):
        base = build(size, **settings)
    return model, apply_mup(model, base)


@contextmanager
def watch_activations(model: Decoder) -> Iterator[dict[str, float]]:
    """Mean absolute values of the last pass: of the embeddings, what each mixer and feed-forward part adds, the stream
    after each layer, and the logits."""
    found: dict[str, float] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            found[name] = output.detach().abs().mean().item()

        handles.append(module.register_forward_hook(hook))

    watch("embedding", model.embedding)
    for number, layer in enumerate(model.layers):
        watch(f"layer {number}", layer)
        for part in ("mixer", "ffn"):
            if (module := getattr(layer, part)) is not None:
                watch(f"layer {number} {part}", module)
    watch("head", model.head)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Coordinates:
    """Mean absolute activations ``[width][module]`` after some steps, over seeds."""

    sizes: dict[int, dict[str, float]]

    @property
    def exponents(self) -> dict[str, float]:
        """Of each module, the power of the width with which it grows: the slope in logarithms."""
        widths = sorted(self.sizes)
        log_w = torch.tensor([math.log(width) for width in widths])
        centred = log_w - log_w.mean()
        slopes = {}
        for name in self.sizes[widths[0]]:
            log_x = torch.tensor([math.log(self.sizes[width][name]) for width in widths])
            slopes[name] = ((centred * log_x).sum() / centred.square().sum()).item()
        return slopes

    @property
    def growing(self) -> list[str]:
        """Modules whose activations blow up with the width."""
        return [name for name, slope in self.exponents.items() if slope > GROWING]


GROWING = 0.4
"""An exponent above this is no accident of small widths. (Logits of muP *shrink* at first: what they begin with falls
as ``width ** -0.5``, and what is learned does not.)"""


def coordinates(
    widths: tuple[int, ...],
    *,
    mup: bool,
    steps: int = 4,
    learning_rate: float = 1e-2,
    seeds: int = 2,
    size: Size = SMALL,
    text: Path | None = None,
    change: Callable[[Mup, Decoder], Mup] = lambda mup, model: mup,
) -> Coordinates:
    """The coordinate check (appendix D.1 of the paper): train each width for a few steps at one rate, and look.
    ``change`` may spoil a parametrisation, to see that it shows."""
    sizes: dict[int, dict[str, float]] = {}
    for width in widths:
        sums: dict[str, float] = {}
        for seed in range(seeds):
            torch.manual_seed(seed)
            model, done = at_width(width, size, mup=mup)
            done = change(done, model) if done else None
            rows = training_rows(corpus(text), size.batch_size, size.length, seed)
            config = FitConfig(steps=steps, learning_rate=learning_rate, warmup=1, weight_decay=0.0)
            fit(model, rows, config, groups=_groups(model, done))
            with watch_activations(model) as found, torch.no_grad():
                predictions(model, next(rows))
            found["head"] *= model.config.logit_scale
            sums = {name: sums.get(name, 0.0) + value / seeds for name, value in found.items()}
        sizes[width] = sums
    return Coordinates(sizes)


def _groups(model: Decoder, mup: Mup | None) -> list[dict[str, Any]] | None:
    return mup.groups(model, weight_decay=0.0) if mup else None


def transfer_study(
    *,
    widths: tuple[int, ...] = (32, 64, 128, 256),
    rates: tuple[float, ...] = tuple(2.0**power for power in range(-10, -2)),
    size: Size = SMALL,
    text: Path | None = None,
) -> Study:
    """Held-out loss over the learning rate, for each width under either parametrisation."""

    def run(variant: str, seed: int) -> Curve:
        name, width = variant.rsplit(" ", 1)
        curve: Curve = {}
        for rate in rates:
            torch.manual_seed(seed)
            model, mup = at_width(int(width), size, mup=name == "muP")
            rows = training_rows(corpus(text), size.batch_size, size.length, seed)
            try:
                fit(model, rows, FitConfig(steps=size.steps, learning_rate=rate), groups=_groups(model, mup))
                bits = held_out_bits(model, size, text)
            except FloatingPointError:
                bits = math.inf
            curve[f"{rate:g}"] = min(bits, 8.0) if math.isfinite(bits) else 8.0  # of a byte that is only guessed
        return curve

    return Study(
        name="mup",
        question="Does the best learning rate hold for other widths?",
        variants=tuple(f"{name} {width}" for name in PARAMETRISATIONS for width in widths),
        x="learning rate",
        y="bits per byte, held out",
        settings={**vars(size), "widths": widths, "rates": list(rates), "text": str(text or "standard library")},
        run=run,
        references=tuple(f"standard {width}" for width in widths),
    )


def best_rates(curves: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Of each variant of a report, the rate with the lowest mean: a parabola through it and its neighbours says where
    between the rates that were tried."""
    found = {}
    for variant, curve in curves.items():
        rates = [math.log2(float(rate)) for rate in curve]
        losses = [point["mean"] for point in curve.values()]
        at = min(range(len(losses)), key=losses.__getitem__)
        best = rates[at]
        if 0 < at < len(losses) - 1:
            left, middle, right = losses[at - 1 : at + 2]
            if (bend := left - 2 * middle + right) > 0:
                best += 0.5 * (left - right) / bend * (rates[at + 1] - rates[at])
        found[variant] = 2.0**best
    return found
