"""Grouped-query attention (arXiv 2305.13245), multi-head and multi-query included, with every switch families need.

What may be looked at is the context's to say. R = H + K are the heads that are turned: queries, then keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.sizes import check_sizes
from wootz.models.context import PagedKV
from wootz.models.linear import Linear
from wootz.models.positions.rotary import Rotary, RotaryConfig
from wootz.models.run import Remembering, Run


class ScoreBiasConfig(Protocol):
    """A position scheme that speaks in the scores: ALiBi, T5's buckets, Shaw, …. Builds a `ScoreBias` module."""

    def build(self, num_heads: int, head_dim: int) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    qkv_by_group: bool = False
    """Checkpoints keep the rows of a key/value head, and of the queries that read it, together (BLOOM, GPT-NeoX)."""
    output_bias: bool = False
    rotary: RotaryConfig | None = None
    score_bias: ScoreBiasConfig | None = None
    qk_norm: NormConfig | None = None
    qk_norm_over: Literal["head", "all"] = "head"
    """Whether queries and keys are normalised head by head (Qwen3), or over all heads at once (OLMo 2)."""
    scale: float | None = None
    """Of the scores; ``head_dim ** -0.5`` if None."""
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    """A learned logit per head that takes attention away from all tokens (gpt-oss)."""

    def __post_init__(self) -> None:
        check_sizes(self, "num_heads", "num_kv_heads", "head_dim")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.rotary and self.rotary.dim > self.head_dim:
            raise ValueError(f"rotary positions on {self.rotary.dim} of a head's {self.head_dim} dimensions")

    def build(self, hidden_size: int) -> nn.Module:
        return Attention(self, hidden_size)


class Attention(Remembering):
    def __init__(self, config: AttentionConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.qkv = Linear(
            hidden_size, (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim), bias=config.qkv_bias
        )
        self.output = Linear(heads * head_dim, hidden_size, bias=config.output_bias, into_residual=True)
        self.q_norm = self.k_norm = None
        if config.qk_norm is not None:
            over_all = config.qk_norm_over == "all"
            self.q_norm = config.qk_norm.build(heads * head_dim if over_all else head_dim)
            self.k_norm = config.qk_norm.build(kv_heads * head_dim if over_all else head_dim)
        self.rotary = Rotary(config.rotary) if config.rotary else None
        self.score_bias = config.score_bias.build(heads, head_dim) if config.score_bias else None
        self.sinks_H = nn.Parameter(torch.zeros(heads)) if config.sinks else None
        self.scale = head_dim**-0.5 if config.scale is None else config.scale
        self.cache_spec = PagedKV(kv_heads, head_dim, config.window)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        qkv_TEd = self.qkv(x_TD).unflatten(-1, (-1, self.config.head_dim))
        if self.config.qkv_by_group:
            *q, k_TKd, v_TKd = qkv_TEd.unflatten(1, (kv_heads, -1)).unbind(2)
            qkv_TEd = torch.cat((torch.stack(q, 2).flatten(1, 2), k_TKd, v_TKd), dim=1)
        qk_TRd, v_TKd = qkv_TEd.split((heads + kv_heads, kv_heads), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q_THd, k_TKd = qk_TRd.split((heads, kv_heads), dim=1)
            qk_TRd = torch.cat((self._normalise(self.q_norm, q_THd), self._normalise(self.k_norm, k_TKd)), dim=1)
        if self.rotary is not None:
            qk_TRd = run.rotation(self.rotary, x_TD.dtype)(qk_TRd)
        q_THd, k_TKd = qk_TRd.split((heads, kv_heads), dim=1)
        out_THd = run.context.attend(
            self.slot,
            q_THd,
            k_TKd,
            v_TKd,
            scale=self.scale,
            causal=self.config.causal,
            window=self.config.window,
            softcap=self.config.softcap,
            sinks_H=self.sinks_H,
            bias=self.score_bias,
        )
        return self.output(out_THd.flatten(1))

    def _normalise(self, norm: nn.Module, x_THd: Tensor) -> Tensor:
        if self.config.qk_norm_over == "head":
            return norm(x_THd)
        return norm(x_THd.flatten(1)).view(x_THd.shape)
