"""Layers around `wootz.models.attention.linear`: attention whose past is one matrix per head, however long it is.

All three project to queries, keys and values, run a decayed sum through the context, and project back. They differ in
what decays: nothing (`LinearAttentionConfig`, arXiv 2006.16236), each head at a pace of its own (`RetentionConfig`,
RetNet, arXiv 2307.08621), or every key dimension as the token says (`GLAConfig`, arXiv 2312.06635).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.attention import linear
from wootz.models.blocks.norms import RMSNorm
from wootz.models.blocks.recurrent import Recurrent
from wootz.models.blocks.sizes import check_sizes
from wootz.models.context import State
from wootz.models.linear import Linear
from wootz.models.positions.rotary import Rotary, RotaryConfig
from wootz.models.run import Run


@dataclass(frozen=True)
class LinearAttentionConfig:
    """Outputs are divided by the sum of their weights. Features of queries and keys are ``elu + 1``, or with
    ``random_features`` as many of Performer's, which estimate softmax attention (arXiv 2009.14794)."""

    num_heads: int
    head_dim: int
    random_features: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "num_heads", "head_dim")
        if self.random_features is not None:
            check_sizes(self, "random_features")

    def build(self, hidden_size: int) -> nn.Module:
        return LinearAttention(self, hidden_size)


class LinearAttention(Recurrent):
    def __init__(self, config: LinearAttentionConfig, hidden_size: int) -> None:
        heads, head_dim, num_random = config.num_heads, config.head_dim, config.random_features
        width = heads * head_dim
        super().__init__(*linear.linear_attention_state(heads, num_random or head_dim, head_dim).shapes)
        self.config = config
        self.random_features = linear.FavorFeatures(head_dim, num_random) if num_random else None
        self.qkv = Linear(hidden_size, (width, width, width))
        self.output = Linear(width, hidden_size, into_residual=True)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        q_THd, k_THd, v_THd = self.qkv(x_TD).unflatten(-1, (3, self.config.num_heads, -1)).unbind(1)
        if self.random_features is None:
            features_q, features_k = linear.elu_plus_one(q_THd), linear.elu_plus_one(k_THd)
        else:
            features_q, features_k = self.random_features(q_THd, up_to_scale=True), self.random_features(k_THd)
        return self.output(self.recur(run, features_q, features_k, v_THd).flatten(1))

    @staticmethod
    def advance(state: State, q_BTHd: Tensor, k_BTHd: Tensor, v_BTHd: Tensor) -> tuple[Tensor, State]:
        return linear.linear_attention(state, q_BTHd, k_BTHd, v_BTHd)


@dataclass(frozen=True)
class RetentionConfig:
    """Queries and keys turn with position, each head forgets at its own constant pace, and a gate follows."""

    num_heads: int
    head_dim: int
    value_dim: int
    """Of each head; in RetNet twice ``head_dim``."""
    theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_sizes(self, "num_heads", "head_dim", "value_dim")

    def build(self, hidden_size: int) -> nn.Module:
        return Retention(self, hidden_size)


class Retention(Recurrent):
    def __init__(self, config: RetentionConfig, hidden_size: int) -> None:
        heads, head_dim, value_dim = config.num_heads, config.head_dim, config.value_dim
        super().__init__(*linear.decayed_state(heads, head_dim, value_dim).shapes)
        self.config = config
        self.qkvg = Linear(hidden_size, (heads * head_dim, heads * head_dim, heads * value_dim, heads * value_dim))
        self.rotary = Rotary(RotaryConfig(head_dim, config.theta))
        self.output = Linear(heads * value_dim, hidden_size, into_residual=True)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        q_TI, k_TI, v_TI, gate_TI = self.qkvg(x_TD).split(self.qkvg.parts, dim=-1)
        rotation, heads = run.rotation(self.rotary, x_TD.dtype), (self.config.num_heads, -1)
        q_THd, k_THd = rotation(q_TI.unflatten(-1, heads)), rotation(k_TI.unflatten(-1, heads))
        out_THe = self.recur(run, q_THd, k_THd * self.config.head_dim**-0.5, v_TI.unflatten(-1, heads))
        out_THe = F.rms_norm(out_THe, out_THe.shape[-1:], None, self.config.norm_eps)
        return self.output(out_THe.flatten(1) * F.silu(gate_TI))

    def advance(self, state: State, q_BTHd: Tensor, k_BTHd: Tensor, v_BTHe: Tensor) -> tuple[Tensor, State]:
        log_decay_H = linear.retention_log_decay(self.config.num_heads).to(state[0])
        return linear.retention(state, q_BTHd, k_BTHd, v_BTHe, log_decay_H=log_decay_H)


@dataclass(frozen=True)
class GLAConfig:
    """Each token says, through a low-rank projection, how much of every key dimension is kept."""

    num_heads: int
    head_dim: int
    """Of queries and keys; in GLA half of ``value_dim``."""
    value_dim: int
    gate_rank: int = 16
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_sizes(self, "num_heads", "head_dim", "value_dim", "gate_rank")

    def build(self, hidden_size: int) -> nn.Module:
        return GatedLinearAttention(self, hidden_size)


class GatedLinearAttention(Recurrent):
    def __init__(self, config: GLAConfig, hidden_size: int) -> None:
        heads, head_dim, value_dim = config.num_heads, config.head_dim, config.value_dim
        super().__init__(*linear.decayed_state(heads, head_dim, value_dim).shapes)
        self.config = config
        self.qkvg = Linear(hidden_size, (heads * head_dim, heads * head_dim, heads * value_dim, heads * value_dim))
        self.forget_down = Linear(hidden_size, config.gate_rank)
        self.forget_up = Linear(config.gate_rank, heads * head_dim, bias=True)
        self.norm = RMSNorm(value_dim, config.norm_eps)
        self.output = Linear(heads * value_dim, hidden_size, into_residual=True)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        q_TI, k_TI, v_TI, gate_TI = self.qkvg(x_TD).split(self.qkvg.parts, dim=-1)
        forget_TI = self.forget_up(self.forget_down(x_TD))
        by_head = (x.unflatten(-1, (self.config.num_heads, -1)) for x in (q_TI, k_TI, v_TI, forget_TI))
        out_THe = self.recur(run, *by_head) * self.config.head_dim**-0.5
        return self.output(self.norm(out_THe).flatten(1) * F.silu(gate_TI))

    @staticmethod
    def advance(
        state: State, q_BTHd: Tensor, k_BTHd: Tensor, v_BTHe: Tensor, forget_BTHd: Tensor
    ) -> tuple[Tensor, State]:
        return linear.gated_linear_attention(state, q_BTHd, k_BTHd, v_BTHe, forget_BTHd)
