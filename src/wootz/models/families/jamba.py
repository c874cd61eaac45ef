"""Jamba: seven Mambas to one attention, which knows no positions: the Mambas do. Every other layer has experts."""

from __future__ import annotations

import math
from typing import Any

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.mamba import MambaConfig
from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.moe import MoEConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.router import RouterConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families import llama, mamba
from wootz.models.families.bamba import NAMES as BAMBA_NAMES
from wootz.models.families.experts import expert_names, num_experts
from wootz.models.families.family import Family

LAYER = "model.layers.{i}"
NAMES = {
    **BAMBA_NAMES,
    **{ours: theirs.replace("mixer.", f"{LAYER}.mamba.") for ours, theirs in mamba.MIXER.items()},
    **{f"layers.{{i}}.mixer.{part}_norm": f"{LAYER}.mamba.{part}_layernorm" for part in ("dt", "b", "c")},
    **expert_names(f"{LAYER}.feed_forward", router="router"),
}


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    norm, activation = NormConfig("rms", raw["rms_norm_eps"]), raw.get("hidden_act", "silu")
    size, num_heads, rank = raw["hidden_size"], raw["num_attention_heads"], raw.get("mamba_dt_rank", "auto")
    attention = AttentionConfig(
        num_heads=num_heads, num_kv_heads=raw.get("num_key_value_heads") or num_heads, head_dim=size // num_heads
    )
    scan = MambaConfig(
        intermediate_size=raw["mamba_expand"] * size,
        state_size=raw["mamba_d_state"],
        conv_width=raw["mamba_d_conv"],
        dt_rank=math.ceil(size / 16) if rank == "auto" else rank,
        bias=raw.get("mamba_proj_bias", False),
        conv_bias=raw.get("mamba_conv_bias", True),
        activation=activation,
        inner_norm_eps=raw["rms_norm_eps"],
    )
    dense = GatedMLPConfig(raw["intermediate_size"], activation)
    sparse = dense
    if num_experts(raw) > 1:
        router = RouterConfig(num_experts=num_experts(raw), top_k=raw["num_experts_per_tok"], gates="softmax")
        sparse = MoEConfig(router=router, intermediate_size=raw["intermediate_size"], activation=activation)

    def every(number: int, what: str) -> bool:
        return number % raw[f"{what}_layer_period"] == raw[f"{what}_layer_offset"]

    layers = [
        LayerConfig(
            mixer=attention if every(number, "attn") else scan, ffn=sparse if every(number, "expert") else dense
        )
        for number in range(raw["num_hidden_layers"])
    ]
    return llama.decoder_config(raw, norm, layers)


FAMILY = Family(model_types=("jamba",), read_config=read_config, names=NAMES)
