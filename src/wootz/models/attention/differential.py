"""Differential attention (arXiv 2410.05258): what two softmaxes agree on is noise, and is subtracted.

Heads come in pairs. Both halves of a pair read the same values, twice as wide as a head; the output is the first half's
minus ``λ`` times the second's, normalised head by head. λ is learned, in a form that starts near ``lambda_init`` and is
free to move either way.

The layout is DiffLlama's (transformers), so its weights fit: query heads h and ``h + H/2`` are a pair, and so are the
value heads k and ``k + K/2``, side by side one value of a pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.context import PagedKV
from wootz.models.linear import Linear
from wootz.models.positions.rotary import Rotary, RotaryConfig
from wootz.models.run import Remembering, Run


def lambda_init(layer: int) -> float:
    """Where the paper starts λ in this layer, the first being 0: at 0.2, rising to 0.8 with depth."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


@dataclass(frozen=True, kw_only=True)
class DifferentialAttentionConfig:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    lambda_init: float = 0.8
    rotary: RotaryConfig | None = None
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.num_kv_heads < 2 or self.num_kv_heads % 2 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"differential attention pairs heads: num_kv_heads ({self.num_kv_heads}) must be even and divide "
                f"num_heads ({self.num_heads})"
            )

    def build(self, hidden_size: int) -> nn.Module:
        return DifferentialAttention(self, hidden_size)


class DifferentialAttention(Remembering):
    def __init__(self, config: DifferentialAttentionConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.qkv = Linear(hidden_size, (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim))
        self.output = Linear(heads * head_dim, hidden_size, into_residual=True)
        self.rotary = Rotary(config.rotary) if config.rotary else None
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(0.1 * torch.randn(head_dim)) for _ in range(4)
        )
        # Every key is kept twice: the cache's values are as wide as its keys, and a pair's are twice that.
        self.cache_spec = PagedKV(2 * kv_heads, head_dim)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        heads, kv_heads, head_dim = self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        qkv_TEd = self.qkv(x_TD).unflatten(-1, (-1, head_dim))
        qk_TRd, v_TKd = qkv_TEd.split((heads + kv_heads, kv_heads), dim=1)
        if self.rotary is not None:
            qk_TRd = run.rotation(self.rotary, x_TD.dtype)(qk_TRd)
        q_THd, k_TKd = qk_TRd.split((heads, kv_heads), dim=1)
        left, right = v_TKd.chunk(2, dim=1)
        out_TGd = run.context.attend(
            self.slot,
            torch.cat((q_THd, q_THd), dim=1),
            torch.cat((k_TKd, k_TKd), dim=1),
            torch.cat((left, left, right, right), dim=1),
            scale=head_dim**-0.5,
        )
        out_THe = torch.cat(out_TGd.chunk(2, dim=1), dim=-1)
        first, second = out_THe.chunk(2, dim=1)
        difference = first - self.current_lambda().to(x_TD.dtype) * second
        normed = F.rms_norm(difference, (2 * head_dim,), eps=self.config.eps)
        return self.output(((1 - self.config.lambda_init) * normed).flatten(1))

    def current_lambda(self) -> Tensor:
        """``exp(q₁·k₁) - exp(q₂·k₂) + lambda_init``, in float32."""
        more = (self.lambda_q1.float() @ self.lambda_k1.float()).exp()
        less = (self.lambda_q2.float() @ self.lambda_k2.float()).exp()
        return more - less + self.config.lambda_init
