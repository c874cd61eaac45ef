"""Cross-attention (arXiv 1706.03762): what is being written looks at all of what was read.

The source does not change while the target is written, so its keys and values are computed once (`remember`) and lie in
``run.shared`` for every pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wootz.models.attention.dense import attend
from wootz.models.blocks.sizes import check_sizes
from wootz.models.linear import Linear
from wootz.models.run import Run

TARGET_LENGTHS, SOURCE_LENGTHS = "target_lengths", "source_lengths"
"""Where ``run.shared`` says how many tokens each pair has, ``(N,)`` int64."""


@dataclass(frozen=True, kw_only=True)
class CrossAttentionConfig:
    num_heads: int
    head_dim: int
    scale: float | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "num_heads", "head_dim")

    def build(self, hidden_size: int) -> nn.Module:
        return CrossAttention(self, hidden_size)


class CrossAttention(nn.Module):
    name = ""
    """Under which its keys and values lie in ``run.shared``; the model it is in says so."""

    def __init__(self, config: CrossAttentionConfig, hidden_size: int) -> None:
        super().__init__()
        width = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.scale = config.head_dim**-0.5 if config.scale is None else config.scale
        self.query = Linear(hidden_size, width)
        self.key_value = Linear(hidden_size, (width, width))
        self.output = Linear(width, hidden_size, into_residual=True)

    def remember(self, encoded_SD: Tensor) -> Tensor:
        """Keys and values of the sources' tokens: ``(S, 2, H, d)``."""
        return self.key_value(encoded_SD).unflatten(-1, (2, self.num_heads, -1))

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        q_THd = self.query(x_TD).unflatten(-1, (self.num_heads, -1))
        k_SHd, v_SHd = run.shared[self.name].unbind(1)
        targets, sources = run.shared[TARGET_LENGTHS].tolist(), run.shared[SOURCE_LENGTHS].tolist()
        pairs = zip(q_THd.split(targets), k_SHd.split(sources), v_SHd.split(sources), strict=True)
        out_THd = [attend(*(part.transpose(0, 1) for part in pair), scale=self.scale).transpose(0, 1) for pair in pairs]
        return self.output(torch.cat(out_THd).flatten(1))
