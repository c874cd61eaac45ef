"""Dilated attention (LongNet, arXiv 2307.02486): the further away, the coarser, and linear in the length.

Each pattern cuts the text into segments of w tokens, of which every r-th attends to the others, densely and causally;
head h starts at the ``h mod r``-th, so that together the heads miss nobody. Patterns double both numbers, say
``((2048, 1), (4096, 2), (8192, 4))``: each costs the same, and together they reach far. Their outputs are mixed as if
their keys had been in one softmax, a key of two patterns counting twice, which is `online_softmax`'s merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.models.attention.online_softmax import PartialSoftmax
from wootz.models.attention.tiled import attend_tiled


def attend_dilated(
    q_HTd: Tensor, k_HTd: Tensor, v_HTe: Tensor, *, scale: float, patterns: Sequence[tuple[int, int]]
) -> Tensor:
    """Causal, ``(…, H, T, e)``, with as many key/value heads as query heads. ``patterns`` are (segment, dilation); a
    token that no pattern of its head picks gets zeros, so one of them should have dilation 1."""
    if k_HTd.shape[-3] != q_HTd.shape[-3]:
        raise ValueError("each head picks other tokens, so heads cannot share keys")
    for segment, dilation in patterns:
        if dilation < 1 or segment % dilation:
            raise ValueError(f"a segment of {segment} tokens is not made of whole steps of {dilation}")
    parts = [_one_pattern(q_HTd, k_HTd, v_HTe, scale, segment, dilation) for segment, dilation in patterns]
    return reduce(PartialSoftmax.merge, parts).output.to(v_HTe.dtype)


def dilated_mask(num_tokens: int, head: int, segment: int, dilation: int) -> Tensor:
    """Which keys a query may look at under one pattern, as booleans ``(T, T)``: what is computed, by definition."""
    tokens = torch.arange(num_tokens)
    picked = tokens % dilation == head % dilation
    same_segment = tokens[:, None] // segment == tokens // segment
    return picked[:, None] & picked & same_segment & (tokens[:, None] >= tokens)


def _one_pattern(
    q_HTd: Tensor, k_HTd: Tensor, v_HTe: Tensor, scale: float, segment: int, dilation: int
) -> PartialSoftmax:
    num_heads, num_tokens = q_HTd.shape[-3:-1]
    segment = min(segment, -(-num_tokens // dilation) * dilation)
    heads = torch.arange(num_heads, device=q_HTd.device)
    # Shift each head's picks to the front of every group of `dilation` tokens: then they are one index of a view.
    places_HT = torch.arange(0, num_tokens + -num_tokens % segment, dilation, device=q_HTd.device) + (
        heads[:, None] % dilation
    )

    def pick(x_HTd: Tensor) -> Tensor:
        """``(…, segments, H, segment / dilation, d)``."""
        padded = F.pad(x_HTd, (0, 0, 0, -num_tokens % segment))
        return padded[..., heads[:, None], places_HT, :].unflatten(-2, (-1, segment // dilation)).transpose(-3, -4)

    out, logsumexp = attend_tiled(pick(q_HTd), pick(k_HTd), pick(v_HTe), scale=scale, is_causal=True)
    out, logsumexp = out.transpose(-3, -4).flatten(-3, -2), logsumexp.transpose(-2, -3).flatten(-2, -1)
    picked = PartialSoftmax.of_output(out.to(logsumexp.dtype), logsumexp)
    # Back to where they came from; the others have seen nothing.
    places = places_HT.expand(logsumexp.shape)
    nothing = PartialSoftmax.empty(
        (*logsumexp.shape[:-1], num_tokens + -num_tokens % segment), out.shape[-1], logsumexp
    )
    return PartialSoftmax(
        nothing.max.scatter(-1, places, picked.max)[..., :num_tokens],
        nothing.total.scatter(-1, places, picked.total)[..., :num_tokens],
        nothing.weighted.scatter(-2, places.unsqueeze(-1).expand(picked.weighted.shape), picked.weighted)[
            ..., :num_tokens, :
        ],
    )
