"""LoRA on the embedding (arXiv 2106.09685, section 4; PEFT's ``lora_embedding_A`` and ``_B``): the rows of all tokens
move together, within a space of few dimensions, and nothing else moves.

An alternative to training new tokens' rows in full: a change of ``rank * (V + D)`` numbers, which starts as none, and
which may not pull a single row wherever a few texts want it. Here for training; the sum is folded into the matrix at
the end, so what is saved is an ordinary model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wootz.models.decoder import Decoder


class LowRankRows(nn.Module):
    """``weight_VD + scale * A_Vr B_rD``; A starts at zero."""

    def __init__(self, weight_VD: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows, width = weight_VD.shape
        self.a_Vr = nn.Parameter(weight_VD.new_zeros(rows, rank))
        self.b_rD = nn.Parameter(torch.randn(rank, width, dtype=weight_VD.dtype, device=weight_VD.device))
        self.scale = scale

    def forward(self, weight_VD: Tensor) -> Tensor:
        return weight_VD + self.scale * (self.a_Vr @ self.b_rD)


@contextmanager
def low_rank_rows(model: Decoder, rank: int, *, alpha: float | None = None) -> Iterator[list[LowRankRows]]:
    """Inside, the embedding, and the head if it has its own matrix, are trained by such a change of ``rank``, times
    ``alpha / rank`` (1 by default), and the rest of the model is frozen. At the end the change is folded in."""
    tied = model.head.weight is model.embedding.weight
    model.requires_grad_(False)
    scale = 1.0 if alpha is None else alpha / rank
    added = [LowRankRows(model.embedding.weight, rank, scale)]
    if not tied:
        added.append(LowRankRows(model.head.weight, rank, scale))
    places = (model.embedding, model.head)
    for place, change in zip(places, added * (2 if tied else 1), strict=True):
        parametrize.register_parametrization(place, "weight", change)
    try:
        yield added
    finally:
        parametrize.remove_parametrizations(model.embedding, "weight")  # which adds the change in place, …
        parametrize.remove_parametrizations(model.head, "weight", leave_parametrized=not tied)  # … and only once
        if tied:
            model.tie_weights()
        model.requires_grad_(True)
