"""RWKV-7 "Goose" (arXiv 2503.14456): token shift, low-rank choices per token, and the generalised delta rule.

H heads of d numbers make the width D. Every choice (decay, rate of correction, how much of the first layer's value to
take, gate) is a small network of its own, `LowRank`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.attention.delta_rule import delta_rule
from wootz.models.blocks.norms import LayerNorm
from wootz.models.blocks.recurrent import Recurrent
from wootz.models.blocks.short_conv import TokenShift
from wootz.models.blocks.sizes import check_sizes
from wootz.models.context import State
from wootz.models.linear import Linear
from wootz.models.run import Run

STRONGEST_DECAY = math.exp(-0.5)
"""Of the logarithm: whatever a token chooses, ``exp(-0.607)``, 54.5 % of the state, stays."""


@dataclass(frozen=True, kw_only=True)
class RWKV7Config:
    """The time mixing of one layer."""

    head_dim: int = 64
    decay_rank: int = 64
    rate_rank: int = 64
    value_rank: int = 32
    gate_rank: int = 128
    first: bool = False
    """The first layer leaves its values for all others."""
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_sizes(self, "head_dim", "decay_rank", "rate_rank", "value_rank", "gate_rank")

    def build(self, hidden_size: int) -> nn.Module:
        if hidden_size % self.head_dim:
            raise ValueError(f"hidden_size ({hidden_size}) is not a multiple of head_dim ({self.head_dim})")
        return TimeMix7(self, hidden_size)


class TimeMix7(Recurrent):
    def __init__(self, config: RWKV7Config, hidden_size: int) -> None:
        size, head_dim = hidden_size, config.head_dim
        heads = size // head_dim
        super().__init__((heads, head_dim, head_dim))
        self.config, self.num_heads = config, heads
        self.shift = TokenShift(size)
        # How much of the token before goes in, per channel: from all of it to none.
        self.mix_r, self.mix_w, self.mix_k, self.mix_v, self.mix_a, self.mix_g = (
            nn.Parameter(1 - (torch.arange(size) / size) ** power) for power in (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)
        )
        self.receptance, self.key, self.value = (Linear(size, size) for _ in range(3))
        self.decay = LowRank(size, config.decay_rank, torch.tanh, bias=torch.linspace(-5.5, 0.5, size))
        self.rate = LowRank(size, config.rate_rank, None, bias=torch.zeros(size))
        self.keep_own = None if config.first else LowRank(size, config.value_rank, None, bias=torch.full((size,), 0.7))
        self.gate = LowRank(size, config.gate_rank, torch.sigmoid)
        self.removal_scale = nn.Parameter(torch.full((size,), 0.71))
        self.rate_in_key = nn.Parameter(torch.ones(size))
        self.bonus_Hd = nn.Parameter(torch.full((heads, head_dim), -0.04))
        self.norm = LayerNorm(size, config.norm_eps)
        self.out_proj = Linear(size, size, into_residual=True)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        delta_TD = self.shift(x_TD, run) - x_TD
        x_r, x_w, x_k, x_v, x_a, x_g = (
            torch.addcmul(x_TD, delta_TD, mix)
            for mix in (self.mix_r, self.mix_w, self.mix_k, self.mix_v, self.mix_a, self.mix_g)
        )
        r_TD, k_TD, v_TD = self.receptance(x_r), self.key(x_k), self.value(x_v)
        if self.keep_own is None:
            run.shared["rwkv7_first_values"] = v_TD
        else:
            v_TD = torch.lerp(v_TD, run.shared["rwkv7_first_values"], self.keep_own(x_v).sigmoid())
        log_w_TD = -STRONGEST_DECAY * self.decay(x_w).sigmoid()
        rate_TD = self.rate(x_a).sigmoid()
        removed_THd = F.normalize(self._heads(k_TD * self.removal_scale), dim=-1)
        k_TD = k_TD * (1 + (rate_TD - 1) * self.rate_in_key)
        r_THd, k_THd, v_THd, log_w_THd, rate_THd = map(self._heads, (r_TD, k_TD, v_TD, log_w_TD, rate_TD))
        y_THd = self.recur(run, r_THd, log_w_THd, k_THd, v_THd, removed_THd, rate_THd)
        # Each head normalised for itself; its own token is added behind, where nothing can drown it.
        y_THd = F.layer_norm(y_THd, y_THd.shape[-1:], eps=self.config.head_dim * self.config.norm_eps)
        y_TD = torch.addcmul(self.norm.bias, y_THd.flatten(1), self.norm.weight)
        own_THd = (r_THd * k_THd * self.bonus_Hd).sum(-1, keepdim=True) * v_THd
        return self.out_proj((y_TD + own_THd.flatten(1)) * self.gate(x_g))

    @staticmethod
    def advance(
        state: State, r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, removed: Tensor, rate: Tensor
    ) -> tuple[Tensor, State]:
        y_BTHd, state = delta_rule(state, r, log_w, k, v, -removed, removed * rate)
        return y_BTHd.to(v.dtype), state

    def _heads(self, x_TD: Tensor) -> Tensor:
        return x_TD.unflatten(-1, (self.num_heads, -1))


class LowRank(nn.Module):
    """``bias + up(activation(down(x)))``: a choice that few parameters make. It starts as the bias alone."""

    def __init__(
        self, size: int, rank: int, activation: Callable[[Tensor], Tensor] | None, *, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.zeros(rank, size))
        self.up = nn.Parameter(torch.empty(size, rank).normal_(std=0.1 * (size / rank) ** 0.5))
        self.bias = None if bias is None else nn.Parameter(bias)
        self.activation = activation

    def forward(self, x_TD: Tensor) -> Tensor:
        inner_TR = F.linear(x_TD, self.down)
        return F.linear(inner_TR if self.activation is None else self.activation(inner_TR), self.up, self.bias)


@dataclass(frozen=True)
class RWKV7ChannelMixConfig:
    """The feed-forward part, which sees one token back."""

    intermediate_size: int

    def __post_init__(self) -> None:
        check_sizes(self, "intermediate_size")

    def build(self, hidden_size: int) -> nn.Module:
        return ChannelMix7(self, hidden_size)


class ChannelMix7(nn.Module):
    def __init__(self, config: RWKV7ChannelMixConfig, hidden_size: int) -> None:
        super().__init__()
        self.shift = TokenShift(hidden_size)
        self.mix = nn.Parameter(1 - torch.arange(hidden_size) / hidden_size)
        self.key = Linear(hidden_size, config.intermediate_size)
        self.value = Linear(config.intermediate_size, hidden_size, into_residual=True)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        delta_TD = self.shift(x_TD, run) - x_TD
        return self.value(F.relu(self.key(torch.addcmul(x_TD, delta_TD, self.mix))).square())
