"""Mamba (arXiv 2312.00752): a gated layer around a selective scan, in place of attention and feed-forward part both.

I is the inner width, N the numbers of state per channel, R the rank through which each token chooses its time steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.blocks.mlp import check_activation
from wootz.models.blocks.norms import RMSNorm
from wootz.models.blocks.recurrent import Recurrent
from wootz.models.blocks.selective_scan import selective_scan
from wootz.models.blocks.short_conv import ShortConv
from wootz.models.blocks.sizes import check_sizes
from wootz.models.context import State
from wootz.models.linear import Linear
from wootz.models.run import Run


@dataclass(frozen=True, kw_only=True)
class MambaConfig:
    intermediate_size: int
    state_size: int = 16
    conv_width: int = 4
    dt_rank: int
    bias: bool = False
    conv_bias: bool = True
    activation: str = "silu"
    inner_norm_eps: float | None = None
    """Normalise what each token chooses (time steps, B and C), which keeps large models from diverging."""
    inner_norm_weights: bool = True
    """With weights (Jamba) or without (Falcon-Mamba)."""

    def __post_init__(self) -> None:
        check_sizes(self, "intermediate_size", "state_size", "conv_width", "dt_rank")
        check_activation(self.activation)

    def build(self, hidden_size: int) -> nn.Module:
        return Mamba(self, hidden_size)


class Mamba(Recurrent):
    def __init__(self, config: MambaConfig, hidden_size: int) -> None:
        inner, state, rank = config.intermediate_size, config.state_size, config.dt_rank
        super().__init__((inner, state))
        self.config = config
        self.in_proj = Linear(hidden_size, 2 * inner, bias=config.bias)
        self.conv = ShortConv(inner, config.conv_width, bias=config.conv_bias, activation=config.activation)
        self.choice = Linear(inner, rank + 2 * state)
        self.dt_weight = nn.Parameter(torch.empty(inner, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.dt_bias = nn.Parameter(time_step_bias(inner))
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = Linear(inner, hidden_size, bias=config.bias, into_residual=True)
        self.dt_norm = self.b_norm = self.c_norm = None
        if config.inner_norm_eps is not None and config.inner_norm_weights:
            self.dt_norm, self.b_norm, self.c_norm = (RMSNorm(n, config.inner_norm_eps) for n in (rank, state, state))

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        x_TI, gate_TI = self.in_proj(x_TD).chunk(2, dim=-1)
        x_TI = self.conv(x_TI, run)
        dt_TR, b_TN, c_TN = self._normalised(*self.choice(x_TI).split(self._sizes, dim=-1))
        dt_TI = F.linear(dt_TR, self.dt_weight)
        y_TI = self.recur(run, x_TI, dt_TI, b_TN, c_TN)
        return self.out_proj(y_TI * F.silu(gate_TI))

    def advance(
        self, state: State, x_BTI: Tensor, dt_BTI: Tensor, b_BTN: Tensor, c_BTN: Tensor
    ) -> tuple[Tensor, State]:
        dtype = state[0].dtype
        dt_BTI = F.softplus(dt_BTI.to(dtype) + self.dt_bias)
        y_BTI, state = selective_scan(state, x_BTI, dt_BTI, -self.A_log.to(dtype).exp(), b_BTN, c_BTN)
        return (y_BTI + self.D * x_BTI).to(x_BTI.dtype), state

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.config.dt_rank, self.config.state_size, self.config.state_size

    def _normalised(self, *choices: Tensor) -> tuple[Tensor, ...]:
        eps = self.config.inner_norm_eps
        if eps is None:
            return choices
        if self.dt_norm is None or self.b_norm is None or self.c_norm is None:
            return tuple(F.rms_norm(choice, choice.shape[-1:], None, eps) for choice in choices)
        return tuple(
            norm(choice) for norm, choice in zip((self.dt_norm, self.b_norm, self.c_norm), choices, strict=True)
        )


def time_step_bias(size: int, shortest: float = 1e-3, longest: float = 0.1) -> Tensor:
    """What softplus turns into time steps spread evenly, in the logarithm, from short to long: memories of tens to
    thousands of tokens, side by side."""
    dt = torch.exp(torch.rand(size) * math.log(longest / shortest) + math.log(shortest))
    return dt + torch.log(-torch.expm1(-dt))
