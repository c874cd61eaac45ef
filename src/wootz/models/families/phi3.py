"""Phi-3 and Phi-4: Llama whose projections lie together in the file too, and of whose heads often only a part turns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families import llama
from wootz.models.families.family import Family, rope_parameters, rope_scaling, windows
from wootz.models.positions.rotary import RotaryConfig


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    norm = NormConfig("rms", raw["rms_norm_eps"])
    ffn = GatedMLPConfig(raw["intermediate_size"], raw.get("hidden_act", "silu"))
    rope = rope_parameters(raw)
    turned = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    layers = []
    for plain, window in zip(llama.attentions(raw | {"rope_parameters": UNSCALED}, norm), windows(raw), strict=True):
        rotary = RotaryConfig(int(plain.head_dim * turned), rope["rope_theta"], rope_scaling(rope))
        layers.append(LayerConfig(mixer=replace(plain, rotary=rotary, window=window), ffn=ffn))
    return llama.decoder_config(raw, norm, layers)


UNSCALED = {"rope_theta": 10_000.0}

NAMES = llama.NAMES | {
    "layers.{i}.mixer.qkv": "model.layers.{i}.self_attn.qkv_proj",
    "layers.{i}.ffn.gate_up": "model.layers.{i}.mlp.gate_up_proj",
}

FAMILY = Family(model_types=("phi3",), read_config=read_config, names=NAMES)
