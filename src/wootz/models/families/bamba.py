"""Bamba: mostly Mamba-2, and now and then attention in which half of each head turns with its position."""

from __future__ import annotations

from typing import Any

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.mamba2 import Mamba2Config
from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families import llama, mamba2
from wootz.models.families.family import Family, rope_parameters, rope_scaling
from wootz.models.positions.rotary import RotaryConfig

MAMBA2_NAMES = {ours: f"model.layers.{{i}}.mamba.{theirs}" for ours, theirs in mamba2.MIXER.items()}
NAMES = {
    **llama.NAMES,
    **MAMBA2_NAMES,
    "norm": "model.final_layernorm",
    "layers.{i}.ffn_norm": "model.layers.{i}.pre_ff_layernorm",
    "layers.{i}.ffn.gate_up": ("model.layers.{i}.feed_forward.gate_proj", "model.layers.{i}.feed_forward.up_proj"),
    "layers.{i}.ffn.down": "model.layers.{i}.feed_forward.down_proj",
}


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    norm = NormConfig("rms", raw["rms_norm_eps"])
    ffn = GatedMLPConfig(raw["intermediate_size"], raw.get("hidden_act", "silu"), bias=raw.get("mlp_bias", False))
    num_heads, rope = raw["num_attention_heads"], rope_parameters(raw)
    head_dim = raw.get("head_dim") or raw["hidden_size"] // num_heads
    turned = int(head_dim * rope.get("partial_rotary_factor", 0.5))
    attention = AttentionConfig(
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        qkv_bias=raw.get("attention_bias", False),
        output_bias=raw.get("attention_bias", False),
        rotary=RotaryConfig(turned, rope["rope_theta"], rope_scaling(rope)),
    )
    mamba, with_attention = mamba2_mixer(raw), raw.get("attn_layer_indices") or ()
    layers = [
        LayerConfig(mixer=attention if number in with_attention else mamba, ffn=ffn)
        for number in range(raw["num_hidden_layers"])
    ]
    return llama.decoder_config(raw, norm, layers)


def mamba2_mixer(raw: dict[str, Any]) -> Mamba2Config:
    """As hybrids' configs describe it."""
    num_heads, head_dim = raw["mamba_n_heads"], raw.get("mamba_d_head", "auto")
    return Mamba2Config(
        num_heads=num_heads,
        head_dim=raw["mamba_expand"] * raw["hidden_size"] // num_heads if head_dim == "auto" else head_dim,
        state_size=raw["mamba_d_state"],
        num_groups=raw["mamba_n_groups"],
        conv_width=raw["mamba_d_conv"],
        bias=raw.get("mamba_proj_bias", False),
        conv_bias=raw.get("mamba_conv_bias", True),
        activation=raw.get("hidden_act", "silu"),
        norm_eps=raw["rms_norm_eps"],
        time_step_limit=mamba2.limits(raw),
    )


FAMILY = Family(model_types=("bamba",), read_config=read_config, names=NAMES)
