"""What a state can hold, apart from what a layer learns to do with it: nothing here is trained.

A state of N dimensions is given pairs of a key and a value, written as a layer would write them, and asked for each
value by its key; the answer is the value that is most similar. Keys are random directions in N dimensions, as distinct
as they come without learning, or as orthogonal as that many directions in N dimensions get. Three ways to remember:

- *sum* (linear attention): every pair is added; pairs disturb each other by what their keys have in common;
- *delta rule* (DeltaNet, RWKV-7): what the memory answers to a key is taken back before the new value is written;
- *attention* keeps every pair, and is the reference.

`wootz arch recall` trains layers on the same task. Where its figure is below the one here, learning is what is missing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.models.attention.delta_rule import delta_rule
from wootz.models.attention.dense import attend
from wootz.models.attention.linear import decayed_state, decayed_sum
from wootz.training.studies.study import Curve, Study

SIZES = (4, 8, 16)
NUM_VALUES = 16
"""Values to choose from, as in `wootz arch recall`; they are orthogonal."""


def memory_study(*, pairs: tuple[int, ...] = (2, 4, 8, 16), sizes: tuple[int, ...] = SIZES, texts: int = 256) -> Study:
    """How often the right value is read back, out of 16, by way of writing and size of the state."""
    variants = {f"{rule}, {keys} keys, state {size}": (rule, keys, size) for rule, keys, size in _grid(sizes)}

    def run(variant: str, seed: int) -> Curve:
        rule, keys, size = variants[variant]
        generator = torch.Generator().manual_seed(seed)
        return {str(number): recalled(rule, keys, size, number, texts, generator) for number in pairs}

    return Study(
        name="memory",
        question="What can a state hold, before any learning?",
        variants=tuple(variants),
        x="pairs to remember",
        y="accuracy",
        settings={"pairs": list(pairs), "sizes": list(sizes), "texts": texts},
        run=run,
    )


def _grid(sizes: tuple[int, ...]) -> list[tuple[str, str, int]]:
    rules = [("sum", "random"), ("delta rule", "random"), ("sum", "spread"), ("delta rule", "spread")]
    return [("attention", "random", min(sizes))] + [(rule, keys, size) for rule, keys in rules for size in sizes]


def recalled(rule: str, keys: str, size: int, number: int, texts: int, generator: torch.Generator) -> float:
    """The share of ``number`` pairs whose value is read back."""
    k_BTd = F.normalize(torch.randn(texts, number, size, generator=generator), dim=-1)
    if keys == "spread":
        k_BTd = spread(k_BTd)
    labels_BT = torch.randint(NUM_VALUES, (texts, number), generator=generator)
    v_BTe = F.one_hot(labels_BT, NUM_VALUES).float()
    return (read_back(rule, k_BTd, v_BTe).argmax(-1) == labels_BT).float().mean().item()


def read_back(rule: str, k_BTd: Tensor, v_BTe: Tensor) -> Tensor:
    """All pairs are written, then each key is asked for: ``(B, T, e)``."""
    if rule == "attention":
        return attend(k_BTd.unsqueeze(1), k_BTd.unsqueeze(1), v_BTe.unsqueeze(1), scale=1e3).squeeze(1)
    # One head; asking is writing a value of nothing, under a key of nothing.
    k, v = torch.cat((k_BTd, 0 * k_BTd), 1).unsqueeze(2), torch.cat((v_BTe, 0 * v_BTe), 1).unsqueeze(2)
    q = torch.cat((0 * k_BTd, k_BTd), 1).unsqueeze(2)
    start = decayed_state(1, k.shape[-1], v.shape[-1]).start(len(k), k.dtype, k.device)
    if rule == "sum":
        out, _ = decayed_sum(start, q, k, v, None)
    else:
        out, _ = delta_rule(start, q, torch.zeros_like(k), k, v, -k, k)
    return out[:, k_BTd.shape[1] :, 0]


def spread(k_BTd: Tensor, steps: int = 200) -> Tensor:
    """Keys pushed apart: orthogonal where there are no more than dimensions, else as evenly as that many get."""
    gram_of = torch.eye(k_BTd.shape[1])
    for _ in range(steps):
        overlap_BTT = k_BTd @ k_BTd.mT - gram_of
        k_BTd = F.normalize(k_BTd - 0.5 * overlap_BTT @ k_BTd / max(1, k_BTd.shape[1] / k_BTd.shape[2]), dim=-1)
    return k_BTd
