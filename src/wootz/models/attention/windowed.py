"""Sliding-window attention in ``O(T window)`` (Longformer, arXiv 2004.05150): never a score outside of the band.

A mask over dense attention says the same, and computes all T² scores to say it. Here the text is cut into blocks as
long as the window; a block's queries see keys of their own block and of the one before, and nothing else needs a look.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.models.attention.dense import attend


def attend_windowed(q_HTd: Tensor, k_KTd: Tensor, v_KTe: Tensor, *, scale: float, window: int) -> Tensor:
    """Causal, ``(…, H, T, e)``: each token sees the last ``window``, itself included. T may be anything."""
    num_tokens = q_HTd.shape[-2]
    missing = -num_tokens % window
    q_GHwd = F.pad(q_HTd, (0, 0, 0, missing)).unflatten(-2, (-1, window)).transpose(-3, -4)
    # Blocks overlap: each starts one window before its queries, the first in padding.
    k_GKld, v_GKle = (F.pad(x, (0, 0, window, missing)).unfold(-2, 2 * window, window).mT for x in (k_KTd, v_KTe))
    places_l = torch.arange(-window, window, device=q_HTd.device)
    distance_wl = torch.arange(window, device=q_HTd.device)[:, None] - places_l
    mask_G1wl = ((distance_wl >= 0) & (distance_wl < window)).repeat(q_GHwd.shape[-4], 1, 1, 1)
    mask_G1wl[0] &= places_l >= 0
    out_GHwe = attend(q_GHwd, k_GKld.transpose(-3, -4), v_GKle.transpose(-3, -4), scale=scale, mask_QL=mask_G1wl)
    return out_GHwe.transpose(-3, -4).flatten(-3, -2)[..., :num_tokens, :]
