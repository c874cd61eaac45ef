"""Shifted sparse attention, S²-Attn (LongLoRA, arXiv 2309.12307): fine-tune on long texts at the price of short ones.

The text is cut into groups, and tokens attend within their group only. Half of the heads have their groups shifted by
half a group, so that what one head cannot see across, another can. It is for training: the model that comes out is run
with full attention.

LongLoRA's code rolls the sequence, which joins its end and its beginning in one group, where the beginning may see the
future. Here the shifted heads simply have a first group of half the length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.models.attention.dense import attend


def attend_shifted_sparse(q_HTd: Tensor, k_KTd: Tensor, v_KTe: Tensor, *, scale: float, group: int) -> Tensor:
    """Causal, ``(…, H, T, e)``; T may be anything. The second half of the key/value heads, with the query heads that
    read them, has shifted groups. Time and memory are ``O(T group)``."""
    kv_heads = k_KTd.shape[-3]
    if kv_heads % 2 or group % 2:
        raise ValueError(f"half of {kv_heads} key/value heads cannot be shifted by half of {group} tokens")
    halves = zip(*(x.chunk(2, dim=-3) for x in (q_HTd, k_KTd, v_KTe)), (0, group // 2), strict=True)
    return torch.cat([_grouped(q, k, v, scale, group, shift) for q, k, v, shift in halves], dim=-3)


def shifted_sparse_mask(num_tokens: int, group: int, shift: int) -> Tensor:
    """Which keys a query may look at, as booleans ``(T, T)``: what one half of the heads computes, by definition."""
    tokens = torch.arange(num_tokens)
    groups = (tokens + shift) // group
    return (groups[:, None] == groups) & (tokens[:, None] >= tokens)


def _grouped(q_HTd: Tensor, k_KTd: Tensor, v_KTe: Tensor, scale: float, group: int, shift: int) -> Tensor:
    num_tokens = q_HTd.shape[-2]
    missing = -(shift + num_tokens) % group
    padded = [F.pad(x, (0, 0, shift, missing)) for x in (q_HTd, k_KTd, v_KTe)]
    # (…, heads, groups · group, d) to (…, groups, heads, group, d)
    grouped = [x.unflatten(-2, (-1, group)).transpose(-3, -4) for x in padded]
    # Padding in front stands before the first tokens, in their group, and must not be seen. Behind, nobody looks.
    mask = torch.ones(grouped[0].shape[-4], 1, group, group, dtype=torch.bool, device=q_HTd.device).tril()
    mask[0, :, :, :shift] = False
    out = attend(*grouped, scale=scale, mask_QL=mask)
    return out.transpose(-3, -4).flatten(-3, -2)[..., shift : shift + num_tokens, :]
