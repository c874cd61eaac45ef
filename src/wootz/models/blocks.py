"""The parts that decoder models share: norm, attention, gated MLP.

Shape suffixes are those of `wootz.models.context`; E is the width of a fused projection, and R = H + K the heads
that are rotated (queries, then keys).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.context import Context
from wootz.models.linear import Linear
from wootz.models.rotary import rotate


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension, then scale (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245). What may be looked at is the context's to say."""

    def __init__(
        self,
        layer: int,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool,
        output_bias: bool,
        qk_norm_eps: float | None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.qkv = Linear(hidden_size, (num_heads + 2 * num_kv_heads) * head_dim, bias=qkv_bias)
        self.output = Linear(num_heads * head_dim, hidden_size, bias=output_bias)
        self.q_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None
        self.k_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None

    def forward(self, x_TD: Tensor, rotation: tuple[Tensor, Tensor], context: Context) -> Tensor:
        qkv_TEd = self.qkv(x_TD).unflatten(-1, (-1, self.head_dim))
        qk_TRd, v_TKd = qkv_TEd.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q_THd, k_TKd = qk_TRd.split((self.num_heads, self.num_kv_heads), dim=1)
            qk_TRd = torch.cat((self.q_norm(q_THd), self.k_norm(k_TKd)), dim=1)
        q_THd, k_TKd = rotate(qk_TRd, *rotation).split((self.num_heads, self.num_kv_heads), dim=1)
        out_THd = context.attend(self.layer, q_THd, k_TKd, v_TKd, scale=self.scale)
        return self.output(out_THd.flatten(1))


class GatedMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool) -> None:
        super().__init__()
        self.gate_up = Linear(hidden_size, 2 * intermediate_size, bias=bias)
        self.down = Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        gate_TF, up_TF = self.gate_up(x_TD).chunk(2, dim=-1)
        return self.down(F.silu(gate_TF) * up_TF)
