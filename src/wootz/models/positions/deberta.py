"""DeBERTa's disentangled attention (arXiv 2006.03654): content and position each have their own say in a score.

Of ``(x_i + e_i) · (x_j + e_j)`` it keeps content to content, content to position and position to content, and drops
position to position, which knows nothing about the text. Positions are relative, so with vectors a and b learned per
offset

    score = (q_i · k_j + q_i · a_(i - j) + k_j · b_(i - j)) / sqrt(3 d)

`bias` is the last two terms. Far offsets share logarithmic buckets in version 2 and 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wootz.models.blocks.sizes import check_sizes
from wootz.models.positions.shaw import look_up


@dataclass(frozen=True)
class OffsetBuckets:
    """Which row of the tables an offset has."""

    max_offset: int
    """Offsets beyond are clipped."""
    buckets: int = 0
    """If any: up to half of this number offsets are told apart, and farther ones share what is left, up to
    ``max_offset``."""

    def __post_init__(self) -> None:
        check_sizes(self, "max_offset")

    @property
    def span(self) -> int:
        return self.buckets or self.max_offset

    def index(self, offset: Tensor) -> Tensor:
        """Of the query's place minus the key's, in ``0 … 2 * span - 1``."""
        if self.buckets:
            middle = self.buckets // 2
            distance = offset.abs().clamp_min(middle)
            steps = torch.log(distance / middle) / math.log((self.max_offset - 1) / middle)
            wide = torch.ceil(steps * (middle - 1)).long() + middle
            offset = torch.where(offset.abs() <= middle, offset, wide * offset.sign())
        return (offset + self.span).clamp(0, 2 * self.span - 1)


def bias(
    q_HQd: Tensor, k_KLd: Tensor, index_QL: Tensor, a_HRd: Tensor | None, b_HRd: Tensor | None, scale: float
) -> Tensor:
    """The content-to-position and position-to-content terms, where their vectors are given: ``(…, H, Q, L)``."""
    total = torch.zeros((), dtype=q_HQd.dtype, device=q_HQd.device)
    if a_HRd is not None:
        total = total + look_up((q_HQd * scale) @ a_HRd.transpose(-1, -2), index_QL)
    if b_HRd is not None:
        k_HLd = k_KLd.repeat_interleave(q_HQd.shape[-3] // k_KLd.shape[-3], dim=-3)
        scores_HLR = (k_HLd * scale) @ b_HRd.transpose(-1, -2)
        total = total + look_up(scores_HLR, index_QL.transpose(-1, -2)).transpose(-1, -2)
    return total


@dataclass(frozen=True)
class DisentangledConfig:
    """Both terms with vectors of each layer's own, for any model. The attention's scale should be `scale` too."""

    offsets: OffsetBuckets = OffsetBuckets(64)

    def scale(self, head_dim: int) -> float:
        return (3 * head_dim) ** -0.5

    def build(self, num_heads: int, head_dim: int) -> nn.Module:
        return Disentangled(self, num_heads, head_dim)


class Disentangled(nn.Module):
    def __init__(self, config: DisentangledConfig, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.offsets, self.scale = config.offsets, config.scale(head_dim)
        rows = 2 * config.offsets.span
        self.a_HRd = nn.Parameter(torch.zeros(num_heads, rows, head_dim))
        self.b_HRd = nn.Parameter(torch.zeros(num_heads, rows, head_dim))
        if not self.a_HRd.is_meta:
            nn.init.normal_(self.a_HRd, std=head_dim**-0.5)
            nn.init.normal_(self.b_HRd, std=head_dim**-0.5)

    def forward(self, q_HQd: Tensor, k_KLd: Tensor, relative_QL: Tensor) -> Tensor:
        return bias(q_HQd, k_KLd, self.offsets.index(-relative_QL), self.a_HRd, self.b_HRd, self.scale)
