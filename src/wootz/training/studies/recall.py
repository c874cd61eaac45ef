"""Can it look something up? Associative recall, attention against state-space layers (arXiv 2312.04927).

A text is a list of pairs, then some of the keys again; after each of those the model has to say the value that
followed it. Attention looks back. A layer with a running state has to have written every pair into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from wootz.models import Decoder, read_config
from wootz.training.fit import IGNORED, Batch, FitConfig, accuracy, fit
from wootz.training.studies.study import Curve, Study

NUM_KEYS = NUM_VALUES = 32
MODELS = {
    "attention": "AA",
    "mamba": "MM",
    "mamba2": "SS",
    "gated linear attention": "GG",
    "hybrid (mamba + 1 attention)": "MA",
}
"""Layer patterns of the family `wootz`."""


def recall_batch(num_pairs: int, batch_size: int, generator: torch.Generator) -> Batch:
    """``k1 v1 k2 v2 … | k3 v3 k1 v1 …``: every pair, then every key again in another order with its value, which is
    what is asked. Tokens below `NUM_KEYS` are keys."""
    keys = torch.rand(batch_size, NUM_KEYS, generator=generator).argsort(-1)[:, :num_pairs]
    values = NUM_KEYS + torch.randint(NUM_VALUES, (batch_size, num_pairs), generator=generator)
    order = torch.rand(batch_size, num_pairs, generator=generator).argsort(-1)
    listed = torch.stack((keys, values), -1).flatten(1)
    asked = torch.stack((keys.gather(1, order), values.gather(1, order)), -1).flatten(1)
    tokens = torch.cat((listed, asked), 1)
    labels = torch.full_like(tokens, IGNORED)
    labels[:, listed.shape[1] :: 2] = values.gather(1, order)
    return Batch(tokens, labels)


def copy_batch(length: int, batch_size: int, generator: torch.Generator) -> Batch:
    """``a b c … | a b c …``: a random text, a mark, and the same text again, which is what is asked."""
    text = torch.randint(NUM_KEYS, (batch_size, length), generator=generator)
    mark = torch.full((batch_size, 1), NUM_KEYS)
    tokens = torch.cat((text, mark, text), 1)
    labels = torch.full_like(tokens, IGNORED)
    labels[:, length:-1] = text
    return Batch(tokens, labels)


def recall_study(
    *,
    pairs: tuple[int, ...] = (2, 4, 8, 16),
    steps: int = 800,
    width: int = 64,
    batch_size: int = 32,
    task: str = "recall",
    models: tuple[str, ...] = tuple(MODELS),
) -> Study:
    make = {"recall": recall_batch, "copy": copy_batch}[task]

    def batches(seed: int) -> Iterator[Batch]:
        """Of all sizes in turn."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            for size in pairs:
                yield make(size, batch_size, generator)

    def run(variant: str, seed: int) -> Curve:
        torch.manual_seed(seed)
        model = _model(MODELS[variant], width)
        fit(model, batches(seed), FitConfig(steps=steps, learning_rate=3e-3, weight_decay=0.1))
        fresh = torch.Generator().manual_seed(10_000 + seed)
        return {str(size): accuracy(model, make(size, 64, fresh)) for size in pairs}

    return Study(
        name=task,
        question={"recall": "Which layers can look a pair up?", "copy": "Which layers can copy a text?"}[task],
        variants=models,
        x="pairs to remember" if task == "recall" else "tokens to copy",
        y="accuracy",
        settings={"pairs": list(pairs), "steps": steps, "width": width, "batch_size": batch_size},
        run=run,
    )


def _model(layers: str, width: int) -> Decoder:
    raw: dict[str, Any] = {
        "model_type": "wootz",
        "vocab_size": NUM_KEYS + NUM_VALUES,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": 4,
        "layers": layers,
        "state_size": 8,
        "initializer_range": width**-0.5,
    }
    model = read_config(raw).build()
    assert isinstance(model, Decoder)
    return model
