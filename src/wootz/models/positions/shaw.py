"""Relative positions as vectors (Shaw et al., arXiv 1803.02155): a key has one more part, learned for its offset.

``score = q_i · (k_j + r_(j - i)) * scale``, with the signed offset clipped at ±K, so that 2K + 1 vectors serve any
length and what is farther away than K is simply "far". All heads of a layer share them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wootz.models.blocks.sizes import check_sizes


@dataclass(frozen=True)
class ShawConfig:
    max_offset: int = 16
    scale: float | None = None
    """That of the attention's scores; ``head_dim ** -0.5`` if None."""

    def __post_init__(self) -> None:
        check_sizes(self, "max_offset")

    def build(self, num_heads: int, head_dim: int) -> nn.Module:
        return Shaw(self, head_dim)


class Shaw(nn.Module):
    def __init__(self, config: ShawConfig, head_dim: int) -> None:
        super().__init__()
        self.max_offset = config.max_offset
        self.scale = head_dim**-0.5 if config.scale is None else config.scale
        self.offsets_Rd = nn.Parameter(torch.zeros(2 * config.max_offset + 1, head_dim))
        if not self.offsets_Rd.is_meta:
            nn.init.normal_(self.offsets_Rd, std=head_dim**-0.5)

    def forward(self, q_HQd: Tensor, k_KLd: Tensor, relative_QL: Tensor) -> Tensor:
        scores_HQR = (q_HQd * self.scale) @ self.offsets_Rd.T
        return look_up(scores_HQR, relative_QL.clamp(-self.max_offset, self.max_offset) + self.max_offset)


def look_up(scores_HQR: Tensor, index_QL: Tensor) -> Tensor:
    """Each query's score for the offset at which each key is: ``(…, H, Q, L)``. An index is the same for all heads."""
    index = index_QL.unsqueeze(-3).expand(*scores_HQR.shape[:-1], index_QL.shape[-1])
    return scores_HQR.gather(-1, index)
