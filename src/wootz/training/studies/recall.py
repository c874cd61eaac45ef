"""Can it look something up? Associative recall, attention against layers with a running state (arXiv 2312.04927).

A text is a list of pairs, then all of its keys again; after each of those the model has to say the value that followed
it. Attention looks back. A layer with a running state has to have written every pair into it.

All models start with a short convolution (`C`), which lets a value's place know the key before it, so that one layer
can look it up. None has feed-forward parts, so what is remembered is remembered by the mixer.

What is measured is what was learned in the steps given, which is not yet what a layer can hold. Mamba and Mamba-2 stay
near a guess among the values they have seen for more than two pairs, with more state too; gated linear attention with a
state of 16 learns more slowly than with 8. Only where more steps change nothing is a low figure the state's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from wootz.core.errors import BadRequestError
from wootz.data.batch import IGNORED, Batch
from wootz.models import Decoder, read_config
from wootz.training.fit import FitConfig, accuracy, fit
from wootz.training.studies.study import Curve, Study

MODELS: dict[str, dict[str, Any]] = {
    "attention": {"layers": "C-A-"},
    "gated linear, state 2": {"layers": "C-G-", "state_size": 2},
    "gated linear, state 4": {"layers": "C-G-", "state_size": 4},
    "gated linear, state 8": {"layers": "C-G-", "state_size": 8},
    "gated linear, state 16": {"layers": "C-G-", "state_size": 16},
    "gated linear, state 2, and attention": {"layers": "C-G-A-", "state_size": 2},
    "rwkv7, state 4": {"layers": "C-R-", "head_dim": 4, "num_attention_heads": 16},
    "rwkv7, state 64": {"layers": "C-R-"},
    "mamba, state 16": {"layers": "C-M-", "state_size": 16},
    "mamba2, state 16": {"layers": "C-S-", "state_size": 16},
    "mamba, state 2, and attention": {"layers": "C-M-A-", "state_size": 2},
}
"""Settings of the family `wootz`. A state of N keeps N numbers per channel: keys are told apart in N dimensions."""


def recall_batch(num_pairs: int, batch_size: int, generator: torch.Generator, num_keys: int = 16) -> Batch:
    """``k1 v1 k2 v2 … | k3 v3 k1 v1 …``: every pair, then every key again in another order with its value, which is
    what is asked. Tokens below ``num_keys`` are keys, as many above are values."""
    keys = torch.rand(batch_size, num_keys, generator=generator).argsort(-1)[:, :num_pairs]
    values = num_keys + torch.randint(num_keys, (batch_size, num_pairs), generator=generator)
    order = torch.rand(batch_size, num_pairs, generator=generator).argsort(-1)
    listed = torch.stack((keys, values), -1).flatten(1)
    asked = torch.stack((keys.gather(1, order), values.gather(1, order)), -1).flatten(1)
    tokens = torch.cat((listed, asked), 1)
    labels = torch.full_like(tokens, IGNORED)
    labels[:, listed.shape[1] :: 2] = values.gather(1, order)
    return Batch(tokens, labels)


def copy_batch(length: int, batch_size: int, generator: torch.Generator, num_keys: int = 16) -> Batch:
    """``a b c … | a b c …``: a random text, a mark, and the same text again, which is what is asked."""
    text = torch.randint(num_keys, (batch_size, length), generator=generator)
    mark = torch.full((batch_size, 1), num_keys)
    tokens = torch.cat((text, mark, text), 1)
    labels = torch.full_like(tokens, IGNORED)
    labels[:, length:-1] = text
    return Batch(tokens, labels)


def recall_study(
    *,
    pairs: tuple[int, ...] = (2, 4, 8, 16),
    steps: int = 400,
    width: int = 64,
    batch_size: int = 64,
    task: str = "recall",
    models: tuple[str, ...] = tuple(MODELS),
) -> Study:
    """Models learn all numbers of ``pairs`` in turn, and are asked about fresh ones. Raises `BadRequestError` for a
    model or task that there is not."""
    if unknown := [model for model in models if model not in MODELS]:
        raise BadRequestError(f"no model is called {', '.join(unknown)}", hint=f"there are {', '.join(MODELS)}")
    tasks = {"recall": recall_batch, "copy": copy_batch}
    if task not in tasks:
        raise BadRequestError(f'no task is called "{task}"', hint="recall or copy")
    make, num_keys = tasks[task], max(16, *pairs)

    def batches(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for size in pairs:
                yield make(size, batch_size, generator, num_keys)

    def run(variant: str, seed: int) -> Curve:
        torch.manual_seed(seed)
        model = small_model(2 * num_keys, width, **MODELS[variant])
        fit(model, batches(seed), FitConfig(steps=steps, learning_rate=6e-3))
        fresh = torch.Generator().manual_seed(10_000 + seed)
        return {str(size): accuracy(model, make(size, 128, fresh, num_keys)) for size in pairs}

    return Study(
        name=task,
        question={"recall": "Which layers can look a pair up?", "copy": "Which layers can copy a text?"}[task],
        variants=models,
        x="pairs to remember" if task == "recall" else "tokens to copy",
        y="accuracy",
        settings={"pairs": list(pairs), "steps": steps, "width": width, "batch_size": batch_size},
        run=run,
    )


def small_model(vocab_size: int, width: int, **settings: Any) -> Decoder:
    raw: dict[str, Any] = {
        "model_type": "wootz",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": sum(letter.isalnum() for letter in settings["layers"]),
        "num_attention_heads": 1,
        "initializer_range": width**-0.5,
    }
    model = read_config(raw | settings).build()
    assert isinstance(model, Decoder)
    return model
