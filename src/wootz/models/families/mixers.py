"""The mixers of our own family, by letter; see `wootz.models.families.wootz`.

Each is made from the same few numbers (`Shape`), with the proportions of the paper it comes from. A letter refuses a
position scheme that it has no place for; layers with a running state know order by themselves and ignore all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from wootz.models.attention.differential import DifferentialAttentionConfig, lambda_init
from wootz.models.attention.native_sparse import NativeSparseConfig
from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.gated_conv import GatedConvConfig
from wootz.models.blocks.latent_attention import LatentAttentionConfig
from wootz.models.blocks.linear_attention import GLAConfig, LinearAttentionConfig, RetentionConfig
from wootz.models.blocks.mamba import MambaConfig
from wootz.models.blocks.mamba2 import Mamba2Config
from wootz.models.blocks.native_sparse import NativeSparseMixerConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.rwkv4 import RWKV4Config
from wootz.models.blocks.rwkv7 import RWKV7Config
from wootz.models.blocks.s4d import S4DConfig
from wootz.models.decoder import PartConfig
from wootz.models.families.family import refuse_unless
from wootz.models.positions.rotary import RotaryConfig
from wootz.models.positions.schemes import Scheme


@dataclass(frozen=True)
class Shape:
    """What one layer's mixer is made from."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm: NormConfig
    raw: Mapping[str, Any]
    positions: Scheme = field(default_factory=Scheme)
    layer: int = 0
    first: bool = True
    """No layer before this one has the same letter."""

    def state_size(self, default: int) -> int:
        return self.raw.get("state_size", default)

    @property
    def inner_size(self) -> int:
        return self.raw.get("expand", 2) * self.hidden_size

    @property
    def conv_width(self) -> int:
        return self.raw.get("conv_width", 4)


def attention(shape: Shape) -> PartConfig:
    raw = shape.raw
    return AttentionConfig(
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rotary=shape.positions.rotary,
        score_bias=shape.positions.score_bias,
        scale=shape.positions.scale,
        qk_norm=shape.norm if raw.get("qk_norm") else None,
        softcap=raw.get("softcap"),
        causal=raw.get("causal", True),
        sinks=raw.get("sinks", False),
    )


def windowed(shape: Shape) -> PartConfig:
    part = attention(shape)
    assert isinstance(part, AttentionConfig)
    return replace(part, window=shape.raw.get("sliding_window", 128))


def differential(shape: Shape) -> PartConfig:
    return DifferentialAttentionConfig(
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        lambda_init=lambda_init(shape.layer),
        rotary=rotary_only(shape, "differential attention (D)"),
    )


def latent(shape: Shape) -> PartConfig:
    rotary = rotary_only(shape, "latent attention (L)")
    refuse_unless(rotary and not rotary.decay, "latent attention (L) takes rope or rope-interleaved positions only")
    assert rotary is not None
    return LatentAttentionConfig(
        num_heads=shape.num_heads,
        latent_dim=shape.raw.get("latent_dim", 4 * shape.head_dim),
        plain_dim=shape.head_dim,
        value_dim=shape.head_dim,
        rotary=replace(rotary, dim=2 * math.ceil(shape.head_dim / 4)),
        norm=shape.norm,
    )


def native_sparse(shape: Shape) -> PartConfig:
    raw, rotary = shape.raw, rotary_only(shape, "native sparse attention (N)")
    refuse_unless(not (rotary and rotary.decay), "native sparse attention (N) does not take xpos positions")
    block = raw.get("sparse_block", 64)
    refuse_unless(block % 4 == 0 and block > 0, f"sparse_block must be a multiple of 4, not {block}")
    sparse = NativeSparseConfig(
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        compressed_block=block // 2,
        stride=block // 4,
        selected_block=block,
        num_selected=raw.get("sparse_selected", 16),
        window=raw.get("sliding_window", 512),
    )
    return NativeSparseMixerConfig(sparse, rotary)


def rotary_only(shape: Shape, what: str) -> RotaryConfig | None:
    refuse_unless(shape.positions.score_bias is None, f"{what} has no place for positions that bias scores")
    return shape.positions.rotary


def mamba(shape: Shape) -> PartConfig:
    return MambaConfig(
        intermediate_size=shape.inner_size,
        state_size=shape.state_size(16),
        conv_width=shape.conv_width,
        dt_rank=math.ceil(shape.hidden_size / 16),
    )


def mamba2(shape: Shape) -> PartConfig:
    refuse_unless(
        shape.inner_size % shape.head_dim == 0,
        f"Mamba-2 (S): heads of {shape.head_dim} numbers do not fill an inner width of {shape.inner_size}",
    )
    return Mamba2Config(
        num_heads=shape.inner_size // shape.head_dim,
        head_dim=shape.head_dim,
        state_size=shape.state_size(64),
        conv_width=shape.conv_width,
    )


def rwkv7(shape: Shape) -> PartConfig:
    rank = max(8, shape.hidden_size // 12 // 8 * 8)  # 64 at width 768, as published
    return RWKV7Config(
        head_dim=shape.head_dim,
        decay_rank=rank,
        rate_rank=rank,
        value_rank=max(8, rank // 2),
        gate_rank=2 * rank,
        first=shape.first,
    )


MIXERS: dict[str, Callable[[Shape], PartConfig]] = {
    "A": attention,
    "W": windowed,
    "D": differential,
    "L": latent,
    "N": native_sparse,
    "I": lambda shape: LinearAttentionConfig(shape.num_heads, shape.head_dim, shape.raw.get("random_features")),
    "G": lambda shape: GLAConfig(
        shape.num_heads, shape.state_size(-(-shape.head_dim // 2)), value_dim=shape.head_dim, norm_eps=shape.norm.eps
    ),
    "T": lambda shape: RetentionConfig(shape.num_heads, shape.head_dim, value_dim=2 * shape.head_dim),
    "M": mamba,
    "S": mamba2,
    "4": lambda shape: S4DConfig(shape.state_size(32)),
    "R": rwkv7,
    "r": lambda shape: RWKV4Config(shape.hidden_size),
    "C": lambda shape: GatedConvConfig(shape.conv_width),
}
"""A attention, W in a sliding window, D differential, L latent, N native sparse; I linear, G gated linear, T retention;
M Mamba, S Mamba-2, 4 S4D; R RWKV-7, r RWKV-4; C a short gated convolution."""
