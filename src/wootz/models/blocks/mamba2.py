"""Mamba-2 (arXiv 2405.21060): one decay per head makes the selective scan a masked product of matrices.

    S_t = exp(dt_t a) S_(t-1) + B_tᵀ (dt_t x_t)        y_t = C_t S_t

is linear attention with C, B and x for queries, keys and values, and so it is computed: `decayed_sum`, token by token
when decoding, chunk by chunk when there are many ("state-space duality").

H heads of P numbers make the inner width I; each of G groups shares B and C, of N numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.attention.linear import decayed_sum
from wootz.models.blocks.mamba import time_step_bias
from wootz.models.blocks.mlp import check_activation
from wootz.models.blocks.recurrent import Recurrent
from wootz.models.blocks.short_conv import ShortConv
from wootz.models.blocks.sizes import check_sizes
from wootz.models.context import State
from wootz.models.linear import Linear
from wootz.models.run import Run


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    num_heads: int
    head_dim: int
    state_size: int = 128
    num_groups: int = 1
    conv_width: int = 4
    bias: bool = False
    conv_bias: bool = True
    activation: str = "silu"
    norm_eps: float = 1e-5
    time_step_limit: tuple[float, float] = (0.0, float("inf"))
    chunk_size: int = 64
    """How many tokens are computed as one matrix. It changes speed, and no numbers."""

    def __post_init__(self) -> None:
        check_sizes(self, "num_heads", "head_dim", "state_size", "num_groups", "conv_width", "chunk_size")
        check_activation(self.activation)
        if self.num_heads % self.num_groups:
            raise ValueError(f"num_heads ({self.num_heads}) is not a multiple of num_groups ({self.num_groups})")

    @property
    def inner_size(self) -> int:
        return self.num_heads * self.head_dim

    def build(self, hidden_size: int) -> nn.Module:
        return Mamba2(self, hidden_size)


class Mamba2(Recurrent):
    def __init__(self, config: Mamba2Config, hidden_size: int) -> None:
        heads, inner, shared = config.num_heads, config.inner_size, config.num_groups * config.state_size
        super().__init__((heads, config.state_size, config.head_dim))
        self.config = config
        self.in_proj = Linear(hidden_size, 2 * inner + 2 * shared + heads, bias=config.bias)
        self.conv = ShortConv(
            inner + 2 * shared, config.conv_width, bias=config.conv_bias, activation=config.activation
        )
        self.dt_bias = nn.Parameter(time_step_bias(heads))
        self.A_log = nn.Parameter(torch.linspace(1.0, 16.0, heads).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedGroupNorm(inner, config.num_groups, config.norm_eps)
        self.out_proj = Linear(inner, hidden_size, bias=config.bias, into_residual=True)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        config, inner = self.config, self.config.inner_size
        shared = config.num_groups * config.state_size
        gate_TI, xbc_TC, dt_TH = self.in_proj(x_TD).split((inner, inner + 2 * shared, config.num_heads), dim=-1)
        x_TI, b_TGN, c_TGN = self.conv(xbc_TC, run).split((inner, shared, shared), dim=-1)
        y_TI = self.recur(run, x_TI, dt_TH, b_TGN, c_TGN)
        return self.out_proj(self.norm(y_TI, gate_TI))

    def advance(
        self, state: State, x_BTI: Tensor, dt_BTH: Tensor, b_BTGN: Tensor, c_BTGN: Tensor
    ) -> tuple[Tensor, State]:
        config, dtype = self.config, state[0].dtype
        x_BTHP = x_BTI.unflatten(-1, (config.num_heads, -1)).to(dtype)
        heads_per_group = config.num_heads // config.num_groups
        b_BTHN, c_BTHN = (
            shared.unflatten(-1, (config.num_groups, -1)).repeat_interleave(heads_per_group, dim=2)
            for shared in (b_BTGN, c_BTGN)
        )
        dt_BTH1 = F.softplus(dt_BTH.to(dtype) + self.dt_bias).clamp(*config.time_step_limit).unsqueeze(-1)
        log_decay_BTH1 = -self.A_log.to(dtype).exp()[:, None] * dt_BTH1
        y_BTHP, state = decayed_sum(state, c_BTHN, b_BTHN, x_BTHP * dt_BTH1, log_decay_BTH1, chunk=config.chunk_size)
        return torch.addcmul(y_BTHP, x_BTHP, self.D.to(dtype)[:, None]).flatten(2).to(x_BTI.dtype), state


class GatedGroupNorm(nn.Module):
    """``RMSNorm(x * silu(gate))``, each of the groups for itself, so that they can lie on different devices."""

    def __init__(self, size: int, num_groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.num_groups, self.eps = num_groups, eps

    def forward(self, x_TI: Tensor, gate_TI: Tensor) -> Tensor:
        grouped = (x_TI * F.silu(gate_TI)).unflatten(-1, (self.num_groups, -1))
        return F.rms_norm(grouped, grouped.shape[-1:], None, self.eps).flatten(-2) * self.weight
