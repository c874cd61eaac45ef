"""Our own family: any mixture of the parts in `wootz.models.blocks`, put together by a few words.

    {"model_type": "wootz", "vocab_size": 256, "hidden_size": 128, "num_hidden_layers": 8, "num_attention_heads": 8,
     "layers": "MMMMMMMA", "attention": "gqa:2", "ffn": "moe:8x2+1", "positions": "rope"}

``layers`` is a pattern of mixers that repeats until all layers have one; see `MIXERS` for the letters. A letter
followed by ``-`` has no feed-forward part. Checkpoints call weights what we call them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.mlp import GatedMLPConfig, MLPConfig, gated_width
from wootz.models.blocks.moe import MoEConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.router import Gates, RouterConfig
from wootz.models.decoder import DecoderConfig, LayerConfig, PartConfig
from wootz.models.families.family import Family, end_tokens, rope_parameters, rope_scaling
from wootz.models.positions.rotary import RotaryConfig
from wootz.models.positions.schemes import Heads, Scheme, scheme

GATED = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu", "glu": "sigmoid", "bilinear": "identity"}
PLAIN = ("gelu", "relu", "relu2", "silu")


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    shape = Shape.of(raw)
    norm = NormConfig(raw.get("norm", "rms"), raw.get("norm_eps", 1e-5))
    ffn = feed_forward(
        raw.get("ffn", "swiglu"),
        raw["hidden_size"],
        raw.get("intermediate_size"),
        raw.get("router_gates", "softmax_renormalised"),
        balance_bias=raw.get("router_balance_bias", False),
    )
    placement = raw.get("norm_placement", "pre")
    layers = [
        LayerConfig(
            mixer=MIXERS[letter](shape), ffn=None if bare else ffn, norms=placement, parallel=raw.get("parallel", False)
        )
        for letter, bare in pattern(raw.get("layers", "A"), raw["num_hidden_layers"])
    ]
    return DecoderConfig(
        family="wootz",
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        layers=tuple(layers),
        norm=norm,
        max_position_embeddings=raw.get("max_position_embeddings", 2048),
        embedding_positions=shape.positions.embedding,
        tie_embeddings=raw.get("tie_word_embeddings", True),
        initializer_range=raw.get("initializer_range", 0.02),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=end_tokens(raw),
        raw=raw,
    )


def pattern(letters: str, num_layers: int) -> list[tuple[str, bool]]:
    """``"MA-"`` for 4 layers: ``[("M", False), ("A", True), ("M", False), ("A", True)]``."""
    kinds = re.findall(r"(.)(-?)", letters)
    if unknown := {letter for letter, _ in kinds} - MIXERS.keys() or (not kinds and {letters}):
        raise ValueError(
            f'layers "{letters}": no mixer is called {", ".join(sorted(unknown))} ({", ".join(MIXERS)} are)'
        )
    return [(letter, bool(bare)) for letter, bare in (kinds * num_layers)[:num_layers]]


@dataclass(frozen=True)
class Shape:
    """What mixers are made from."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    positions: Scheme
    window: int
    raw: Mapping[str, Any]

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Shape:
        num_heads = raw["num_attention_heads"]
        head_dim = raw.get("head_dim") or raw["hidden_size"] // num_heads
        num_kv_heads = kv_heads(raw.get("attention", "mha"), num_heads)
        rope = rope_parameters(raw)
        heads = Heads(
            num_heads,
            num_kv_heads,
            head_dim,
            rotary=lambda: RotaryConfig(head_dim, rope["rope_theta"], rope_scaling(rope)),
            num_positions=raw.get("max_position_embeddings", 2048),
        )
        return cls(
            hidden_size=raw["hidden_size"],
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            positions=scheme(raw.get("positions", "rope"), heads),
            window=raw.get("sliding_window", 128),
            raw=raw,
        )


def kv_heads(attention: str, num_heads: int) -> int:
    """``mha``, ``mqa`` or ``gqa:K`` with K key/value heads."""
    if found := re.fullmatch(r"gqa:(\d+)", attention):
        return int(found[1])
    kinds = {"mha": num_heads, "mqa": 1}
    if attention not in kinds:
        raise ValueError(f'attention "{attention}" is not known (mha, mqa and gqa:K are)')
    return kinds[attention]


def feed_forward(
    kind: str, hidden_size: int, width: int | None, gates: Gates = "softmax_renormalised", *, balance_bias: bool = False
) -> PartConfig:
    """``moe:8x2+1`` is 8 experts, 2 for each token, and a shared one. Without a width, one that costs the parameters of
    a plain part four times as wide as the model; an expert is as wide as that."""
    if kind in GATED:
        return GatedMLPConfig(width or gated_width(4 * hidden_size, 8), GATED[kind])
    if kind in PLAIN:
        return MLPConfig(width or 4 * hidden_size, kind, bias=False)
    if found := re.fullmatch(r"moe:(\d+)x(\d+)(?:\+(\d+))?", kind):
        experts, top_k, shared = (int(number or 0) for number in found.groups())
        width = width or gated_width(4 * hidden_size, 8)
        return MoEConfig(
            router=RouterConfig(num_experts=experts, top_k=top_k, gates=gates, balance_bias=balance_bias),
            intermediate_size=width,
            shared=GatedMLPConfig(shared * width) if shared else None,
        )
    raise ValueError(f'ffn "{kind}" is not known ({", ".join([*GATED, *PLAIN])} and moe:ExK[+S] are)')


def _attention(shape: Shape, window: int | None = None) -> PartConfig:
    return AttentionConfig(
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rotary=shape.positions.rotary,
        score_bias=shape.positions.score_bias,
        scale=shape.positions.scale,
        window=window,
    )


MIXERS: dict[str, Callable[[Shape], PartConfig]] = {
    "A": _attention,
    "W": lambda shape: _attention(shape, shape.window),
    "N": lambda shape: _attention(replace(shape, positions=Scheme())),
}
"""A: attention; W: attention in a sliding window; N: attention that is not told where tokens stand."""


class OwnNames(Mapping[str, str]):
    """Every weight is called what it is called here."""

    def __getitem__(self, name: str) -> str:
        return name

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


FAMILY = Family(model_types=("wootz",), read_config=read_config, names=OwnNames())
