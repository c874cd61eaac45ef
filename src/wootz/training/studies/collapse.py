"""What becomes of a model that learns from its own writing? Generation g + 1 is trained on samples of generation g.

Text of words by Zipf's law, so that the truth is known. Rare words that a generation happens not to write are gone for
all that follow: the vocabulary shrinks and entropy falls (Shumailov et al., arXiv 2305.17493). A share of new human
text in each generation's diet brings them back. "counts" is the exact learner (it estimates frequencies), in which the
effect is a theorem; "model" is a small language model, which adds its own errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from wootz.data.batch import Batch
from wootz.models import Decoder, PackedContext
from wootz.training.fit import FitConfig, fit
from wootz.training.studies.positions import Size, build
from wootz.training.studies.study import Curve, Study

Learner = Literal["counts", "model"]
SMALL = Size(width=32, layers=1, heads=2, length=64, batch_size=16, steps=150)


def collapse_study(
    *,
    generations: int = 8,
    human: tuple[float, ...] = (0.0, 0.5),
    learner: Learner = "counts",
    vocab_size: int = 512,
    num_tokens: int = 8192,
    size: Size = SMALL,
) -> Study:
    """The figure is the share of the words of the true text's rarer half that a generation still writes."""

    def run(variant: str, seed: int) -> Curve:
        share, random = float(variant.split()[-1]), np.random.default_rng(seed)
        truth = 1 / np.arange(1, vocab_size + 1)
        truth /= truth.sum()
        tail = np.arange(vocab_size) >= vocab_size // 2
        written = random.choice(vocab_size, num_tokens, p=truth)
        first_tail = len(np.unique(written[tail[written]]))
        curve = {}
        for generation in range(generations + 1):
            curve[str(generation)] = len(np.unique(written[tail[written]])) / first_tail
            num_human = round(share * num_tokens)
            diet = np.concatenate([written[: num_tokens - num_human], random.choice(vocab_size, num_human, p=truth)])
            written = _write(diet, vocab_size, num_tokens, learner, size, random)
        return curve

    return Study(
        name=f"collapse-{learner}",
        question="Learning from what the last generation wrote: what is left of rare words?",
        variants=tuple(f"human {share:g}" for share in human),
        x="generation",
        y="share of rare words still written",
        settings={
            **vars(size),
            "generations": generations,
            "learner": learner,
            "vocab_size": vocab_size,
            "num_tokens": num_tokens,
        },
        run=run,
        log_x=False,
    )


def _write(
    diet: NDArray[np.int64], vocab_size: int, num_tokens: int, learner: Learner, size: Size, random: np.random.Generator
) -> NDArray[np.int64]:
    if learner == "counts":
        counts = np.bincount(diet, minlength=vocab_size)
        return random.choice(vocab_size, num_tokens, p=counts / counts.sum())
    torch.manual_seed(int(random.integers(1 << 31)))
    model = build(size, vocab_size=vocab_size, max_position_embeddings=size.length + 1)
    fit(model, _rows(diet, size, random), FitConfig(steps=size.steps))
    return _sampled(model, num_tokens, size.length, vocab_size)


def _rows(diet: NDArray[np.int64], size: Size, random: np.random.Generator) -> Iterator[Batch]:
    while True:
        starts = random.integers(len(diet) - size.length - 1, size=(size.batch_size, 1))
        yield Batch.of(torch.from_numpy(diet[starts + np.arange(size.length + 1)]))


@torch.inference_mode()
def _sampled(model: Decoder, num_tokens: int, length: int, vocab_size: int) -> NDArray[np.int64]:
    """Rows of ``length`` tokens, each begun with a word by lot, as many as are wanted in all."""
    num_rows = -(-num_tokens // length)
    rows_BT = torch.randint(vocab_size, (num_rows, 1))
    while rows_BT.shape[1] <= length:
        reach = rows_BT.shape[1]
        positions_T = torch.arange(reach).repeat(num_rows)
        hidden_TD = model(rows_BT.flatten(), positions_T, PackedContext([reach] * num_rows))
        logits_BV = model.unembed(hidden_TD.view(num_rows, reach, -1)[:, -1])
        rows_BT = torch.cat([rows_BT, torch.multinomial(logits_BV.softmax(-1), 1)], dim=1)
    return rows_BT[:, 1:].flatten()[:num_tokens].numpy()
