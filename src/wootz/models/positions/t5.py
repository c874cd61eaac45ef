"""T5's relative position buckets (arXiv 1910.10683): a learned number per head for how far a key is away.

Near distances have a bucket each, farther ones share buckets that widen logarithmically, and everything from
``max_distance`` on falls into the last. T5 itself does not scale its scores by ``1 / sqrt(d)``, and all its layers use
the first one's table; both are the attention's and the model's matter, not the bias's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class T5BucketsConfig:
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = False
    """Half of the buckets are for keys after the query; without, those are not told apart (and never seen)."""

    def __post_init__(self) -> None:
        exact = self.num_buckets // (4 if self.bidirectional else 2)
        if exact < 1 or self.max_distance <= exact:
            raise ValueError(f"{self.num_buckets} buckets cannot cover distances up to {self.max_distance}")

    def build(self, num_heads: int, head_dim: int) -> nn.Module:
        return T5Buckets(self, num_heads)

    def bucket(self, relative: Tensor) -> Tensor:
        """The bucket of each key's place minus the query's; int64, as it is given."""
        num_buckets, first = self.num_buckets, 0
        if self.bidirectional:
            num_buckets //= 2
            first = (relative > 0) * num_buckets
            distance = relative.abs()
        else:
            distance = (-relative).clamp_min(0)
        exact = num_buckets // 2
        steps = torch.log(distance.clamp_min(1).float() / exact) / math.log(self.max_distance / exact)
        wide = (exact + (steps * (num_buckets - exact)).long()).clamp_max(num_buckets - 1)
        return first + torch.where(distance < exact, distance, wide)


class T5Buckets(nn.Module):
    def __init__(self, config: T5BucketsConfig, num_heads: int) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding.from_pretrained(torch.zeros(config.num_buckets, num_heads), freeze=False)

    def forward(self, q_HQd: Tensor, k_KLd: Tensor, relative_QL: Tensor) -> Tensor:
        return self.table(self.config.bucket(relative_QL)).movedim(-1, -3)
