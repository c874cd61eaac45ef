"""Our own family: any mixture of the parts in `wootz.models.blocks`, put together by a few words.

    {"model_type": "wootz", "vocab_size": 256, "hidden_size": 128, "num_hidden_layers": 8, "num_attention_heads": 8,
     "layers": "MMMMMMMeA", "attention": "gqa:2", "ffn": "swiglu", "experts": "8x2+1", "positions": "rope"}

``layers`` is a pattern of letters (`wootz.models.families.mixers`) that repeats until all layers have one. A letter
followed by ``-`` has no feed-forward part, one followed by ``e`` has experts in its place (Jamba: ``M Me M Ae …``).
``positions`` is a scheme of `wootz.models.positions.schemes`, or a list with commas that repeats likewise: with
``rope,rope,rope,nope`` every fourth layer is not told where tokens stand. All settings are in
`wootz.models.families.settings`. Checkpoints call weights what we call them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

from wootz.models.blocks.mlp import GatedMLPConfig, MLPConfig, gated_width
from wootz.models.blocks.moe import MoEConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.router import Gates, RouterConfig
from wootz.models.blocks.rwkv7 import RWKV7ChannelMixConfig
from wootz.models.decoder import DecoderConfig, LayerConfig, NormPlacement, PartConfig
from wootz.models.families.family import (
    Family,
    ModelConfig,
    context_length,
    end_tokens,
    refuse_unless,
    rope_parameters,
    rope_scaling,
)
from wootz.models.families.kinds import of_kind
from wootz.models.families.mixers import MIXERS, Shape
from wootz.models.positions.rotary import RotaryConfig
from wootz.models.positions.schemes import Heads, Scheme, scheme

GATED = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu", "glu": "sigmoid", "bilinear": "identity"}
PLAIN = ("gelu", "relu", "relu2", "silu")


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    kinds = pattern(raw.get("layers", "A"), raw["num_hidden_layers"])
    shape, schemes = shape_of(raw), position_schemes(raw)
    dense, sparse = feed_forwards(raw)
    placement, letters = raw.get("norm_placement", "pre"), [letter for letter, _ in kinds]
    refuse_unless(
        placement in get_args(NormPlacement),
        f'norm_placement "{placement}" is not known ({", ".join(get_args(NormPlacement))} are)',
    )
    for name in ("qk_norm", "softcap", "sinks"):
        refuse_unless(not raw.get(name) or {"A", "W"} & set(letters), f"{name} is for attention (A, W): there is none")
    uses_experts = any(suffix == "e" for _, suffix in kinds)
    refuse_unless(uses_experts or not raw.get("experts"), 'experts: no layer is marked with "e" (as in "MMeA")')
    refuse_unless(sparse or not uses_experts, 'a layer marked with "e" needs "experts", such as "8x2+1"')
    layers = []
    for number, (letter, suffix) in enumerate(kinds):
        positions, first = schemes[number % len(schemes)], letter not in letters[:number]
        mixer = MIXERS[letter](replace(shape, positions=positions, layer=number, first=first))
        ffn = {"": dense, "e": sparse, "-": None}[suffix]
        layers.append(LayerConfig(mixer=mixer, ffn=ffn, norms=placement, parallel=raw.get("parallel", False)))
    embeddings = {scheme.embedding for scheme in schemes} - {None}
    refuse_unless(len(embeddings) < 2, "two of the position schemes want the embedding")
    return DecoderConfig(
        family="wootz",
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        layers=tuple(layers),
        norm=shape.norm,
        max_position_embeddings=context_length({"max_position_embeddings": 2048} | raw),
        embedding_positions=embeddings.pop() if embeddings else None,
        tie_embeddings=raw.get("tie_word_embeddings", True),
        initializer_range=raw.get("initializer_range", 0.02),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=end_tokens(raw),
        raw=raw,
    )


def pattern(letters: str, num_layers: int) -> list[tuple[str, str]]:
    """``"MA-"`` for 4 layers: ``[("M", ""), ("A", "-"), ("M", ""), ("A", "-")]``. Spaces are for the reader."""
    kinds = re.findall(r"(.)([-e]?)", letters.replace(" ", ""))
    unknown = {letter for letter, _ in kinds} - MIXERS.keys()
    refuse_unless(kinds, "layers: the pattern is empty")
    refuse_unless(
        not unknown, f'layers "{letters}": no mixer is called {", ".join(sorted(unknown))} ({", ".join(MIXERS)} are)'
    )
    return (kinds * num_layers)[:num_layers]


def shape_of(raw: dict[str, Any]) -> Shape:
    num_heads = raw["num_attention_heads"]
    head_dim = raw.get("head_dim") or raw["hidden_size"] // num_heads
    refuse_unless(head_dim, f"{num_heads} heads are too many for a width of {raw['hidden_size']}")
    norm = raw.get("norm", "rms")
    refuse_unless(norm in ("rms", "layer"), f'norm "{norm}" is not known (rms and layer are)')
    return Shape(
        hidden_size=raw["hidden_size"],
        num_heads=num_heads,
        num_kv_heads=kv_heads(raw.get("attention", "mha"), num_heads),
        head_dim=head_dim,
        norm=NormConfig(norm, raw.get("norm_eps", 1e-5)),
        raw=raw,
    )


def position_schemes(raw: dict[str, Any]) -> list[Scheme]:
    shape, rope = shape_of(raw), rope_parameters({"max_position_embeddings": 2048} | raw)
    heads = Heads(
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        rotary=lambda: RotaryConfig(shape.head_dim, rope["rope_theta"], rope_scaling(rope)),
        num_positions=raw.get("max_position_embeddings", 2048),
    )
    return [scheme(names.strip(), heads) for names in raw.get("positions", "rope").split(",")]


def kv_heads(attention: str, num_heads: int) -> int:
    """``mha``, ``mqa`` or ``gqa:K`` with K key/value heads."""
    if found := re.fullmatch(r"gqa:(\d+)", attention):
        return int(found[1])
    kinds = {"mha": num_heads, "mqa": 1}
    if attention not in kinds:
        raise ValueError(f'attention "{attention}" is not known (mha, mqa and gqa:K are)')
    return kinds[attention]


def feed_forwards(raw: Mapping[str, Any]) -> tuple[PartConfig, PartConfig | None]:
    """The usual one, and that of layers marked with "e"."""
    gates: Gates = raw.get("router_gates", "softmax_renormalised")
    refuse_unless(gates in get_args(Gates), f'router_gates "{gates}" are not known ({", ".join(get_args(Gates))} are)')
    kind = raw.get("ffn", "swiglu")
    if kind.startswith("moe:"):
        dense = experts(kind.removeprefix("moe:"), raw, gates)
    else:
        dense = feed_forward(kind, raw["hidden_size"], raw.get("intermediate_size"))
    return dense, experts(raw["experts"], raw, gates) if raw.get("experts") else None


def feed_forward(kind: str, hidden_size: int, width: int | None = None) -> PartConfig:
    """Without a width, one that costs the parameters of a plain part four times as wide as the model."""
    if kind in GATED:
        return GatedMLPConfig(width or gated_width(4 * hidden_size, 8), GATED[kind])
    if kind in PLAIN:
        return MLPConfig(width or 4 * hidden_size, kind, bias=False)
    if kind == "rwkv":
        return RWKV7ChannelMixConfig(width or 4 * hidden_size)
    raise ValueError(f'ffn "{kind}" is not known ({", ".join([*GATED, *PLAIN, "rwkv"])} and moe:ExK[+S] are)')


def experts(words: str, raw: Mapping[str, Any], gates: Gates) -> PartConfig:
    """``8x2+1``: 8 experts, 2 for each token, and a shared one, each as wide as a dense part would be."""
    found = re.fullmatch(r"(\d+)x(\d+)(?:\+(\d+))?", words)
    if not found:
        raise ValueError(f'experts "{words}": write ExK or ExK+S, such as 8x2+1')
    number, top_k, shared = (int(number or 0) for number in found.groups())
    width = raw.get("expert_size") or raw.get("intermediate_size") or gated_width(4 * raw["hidden_size"], 8)
    router = RouterConfig(
        num_experts=number,
        top_k=top_k,
        gates=gates,
        balance_bias=raw.get("router_balance_bias", False),
        capacity_factor=raw.get("router_capacity_factor"),
    )
    return MoEConfig(router=router, intermediate_size=width, shared=GatedMLPConfig(shared * width) if shared else None)


class OwnNames(Mapping[str, str]):
    """Every weight is called what it is called here."""

    def __getitem__(self, name: str) -> str:
        return name

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def read_kind(raw: dict[str, Any]) -> ModelConfig:
    return of_kind(read_config(raw), raw.get("kind", "decoder"))


FAMILY = Family(model_types=("wootz",), read_config=read_kind, names=OwnNames())
