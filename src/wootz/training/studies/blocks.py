"""What a layer's make is worth, as small models show it: where it normalises, and what its feed-forward part is.

Small models give directions, not sizes: what is reported is what was seen, at these widths, over several seeds.
"""

from __future__ import annotations

from pathlib import Path

import torch

from wootz.training.fit import FitConfig, fit
from wootz.training.studies.parts import held_out_bits
from wootz.training.studies.positions import Size, build
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import corpus, training_rows

DEEP = Size(width=64, layers=8, length=64, batch_size=8, steps=120)
"""Norms matter with depth."""
SHALLOW = Size(width=96, layers=2, length=64, batch_size=16, steps=240)
"""At this width, 2/3 of four times the width is a whole number of eights: gated and plain parts are equally large."""

PLACEMENTS = {
    "pre-norm": ("pre", False),
    "post-norm": ("post", False),
    "pre-norm, warm-up": ("pre", True),
    "post-norm, warm-up": ("post", True),
}
NOTHING_LEARNT = 8.0
"""Bits per byte of a model that diverged."""


def norm_study(
    *, rates: tuple[float, ...] = (2.5e-3, 5e-3, 1e-2), size: Size = DEEP, text: Path | None = None
) -> Study:
    """Pre-norm against post-norm (arXiv 2002.04745), at the full learning rate from the first step or after a third."""

    def run(variant: str, seed: int) -> Curve:
        placement, warmed = PLACEMENTS[variant]
        curve = {}
        for rate in rates:
            torch.manual_seed(seed)
            model = build(size, norm_placement=placement)
            config = FitConfig(steps=size.steps, learning_rate=rate, warmup=size.steps // 3 if warmed else 0)
            try:
                fit(model, training_rows(corpus(text), size.batch_size, size.length, seed), config)
                curve[str(rate)] = min(held_out_bits(model, size, text), NOTHING_LEARNT)
            except FloatingPointError:
                curve[str(rate)] = NOTHING_LEARNT
        return curve

    return Study(
        name="norms",
        question=f"{size.layers} layers: where to normalise, with and without warm-up",
        variants=tuple(PLACEMENTS),
        x="learning rate",
        y="bits per byte, held out",
        settings={**vars(size), "rates": list(rates), "text": str(text or "standard library")},
        run=run,
        references=tuple(name for name, (_, warmed) in PLACEMENTS.items() if warmed),
    )


def feed_forward_study(
    *, kinds: tuple[str, ...] = ("swiglu", "gelu"), size: Size = SHALLOW, every: int = 60, text: Path | None = None
) -> Study:
    """A gated feed-forward part against a plain one of as many parameters (arXiv 2002.05202), as training goes on. The
    gated one is 2/3 as wide, so that its three matrices are as large as the other's two."""

    def run(variant: str, seed: int) -> Curve:
        torch.manual_seed(seed)
        model, curve = build(size, ffn=variant), {}

        def after_step(step: int) -> None:
            if (step + 1) % every == 0:
                curve[str(step + 1)] = held_out_bits(model.eval(), size, text)
                model.train()

        rows = training_rows(corpus(text), size.batch_size, size.length, seed)
        fit(model, rows, FitConfig(steps=size.steps), after_step=after_step)
        return curve

    return Study(
        name="feed-forward",
        question="Feed-forward parts of equal size: gated or plain?",
        variants=kinds,
        x="step",
        y="bits per byte, held out",
        settings={**vars(size), "every": every, "text": str(text or "standard library")},
        run=run,
        log_x=False,
    )


def block_studies(*, steps: int | None = None, text: Path | None = None) -> tuple[Study, Study]:
    """Both, with other numbers of training steps if told."""
    deep, shallow = (Size(**vars(size) | ({"steps": steps} if steps else {})) for size in (DEEP, SHALLOW))
    return norm_study(size=deep, text=text), feed_forward_study(
        size=shallow, every=max(1, shallow.steps // 4), text=text
    )
