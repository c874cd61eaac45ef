"""A model under positions that it did not learn: how much worse, and does training on bring it back?

Loading refuses such a model. Here it is forced. Only schemes without weights of their own can be swapped.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from wootz.core.errors import BadRequestError
from wootz.models import Decoder
from wootz.models.loading import load
from wootz.models.saving import save
from wootz.training.fit import FitConfig, fit
from wootz.training.studies.positions import Size, build, perplexities, train
from wootz.training.studies.study import Curve, Study
from wootz.training.studies.text import corpus, training_rows

SMALL = Size(width=64, layers=2, steps=300)
WEIGHTLESS = frozenset({"rope", "rope-interleaved", "xpos", "alibi", "sinusoidal", "nope"})


def swap_study(
    *,
    learned: str = "rope",
    schemes: tuple[str, ...] = ("rope", "rope-interleaved", "alibi", "nope"),
    size: Size = SMALL,
    tuning_steps: int = 80,
    measure: int = 4,
    text: Path | None = None,
) -> Study:
    """A model trained with ``learned`` positions is read under each of the ``schemes``, and trained on under it. Where
    that is the one it learned, the curve is what the same training does to a model that was left alone."""
    for scheme in (learned, *schemes):
        if not set(scheme.split("+")) <= WEIGHTLESS:
            raise BadRequestError(
                f'positions "{scheme}" are unknown, or have weights and cannot be swapped',
                hint=f"swap among {', '.join(sorted(WEIGHTLESS))}",
            )

    @cache
    def trained(seed: int) -> Decoder:
        torch.manual_seed(seed)
        model = build(size, positions=learned)
        train(model, size, seed, text)
        return model

    def run(variant: str, seed: int) -> Curve:
        model = swapped(trained(seed), variant, force=True)
        curve = {"0": perplexities(model, [size.length], text)[str(size.length)]}

        def after_step(step: int) -> None:
            if (step + 1) % max(1, tuning_steps // measure) == 0:
                model.eval()
                curve[str(step + 1)] = perplexities(model, [size.length], text)[str(size.length)]
                model.train()

        rows = training_rows(corpus(text), size.batch_size, size.length, 77 + seed)
        fit(model, rows, FitConfig(steps=tuning_steps, learning_rate=1e-3, warmup=5), after_step=after_step)
        return curve

    return Study(
        name="swap",
        question=f'Trained with positions "{learned}", then read with others',
        variants=schemes,
        x="steps of training under the other scheme",
        y=f"perplexity per byte at {size.length}",
        settings={
            **vars(size),
            "learned": learned,
            "tuning_steps": tuning_steps,
            "measure": measure,
            "text": str(text or "standard library"),
        },
        run=run,
        log_x=False,
        log_y=True,
        references=(learned,),
    )


def swapped(model: Decoder, positions: str, *, force: bool = False) -> Decoder:
    """What comes of a saved model whose config is changed to other positions: `ConfigError`, unless forced."""
    with TemporaryDirectory() as folder:
        save(model, Path(folder, "model"))
        config = Path(folder, "model", "config.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | {"positions": positions}))
        return load(Path(folder, "model"), force_positions=force)
