"""Qwen2-MoE and Qwen3-MoE: Qwen with many small experts in some or all layers.

Qwen2-MoE has a shared expert beside them, weighed by a sigmoid of its own, and does not renormalise its routers'
weights; Qwen3-MoE has neither, and the published ones renormalise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.moe import MoEConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.router import RouterConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families import llama
from wootz.models.families.experts import expert_names, num_experts, sparse_layers
from wootz.models.families.family import Family


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    norm, activation = NormConfig("rms", raw["rms_norm_eps"]), raw.get("hidden_act", "silu")
    has_shared = raw["model_type"] == "qwen2_moe"
    dense = GatedMLPConfig(raw["intermediate_size"], activation)
    experts = MoEConfig(
        router=RouterConfig(
            num_experts=num_experts(raw),
            top_k=raw["num_experts_per_tok"],
            gates="softmax_renormalised" if raw.get("norm_topk_prob", False) else "softmax",
        ),
        intermediate_size=raw["moe_intermediate_size"],
        activation=activation,
        shared=GatedMLPConfig(raw["shared_expert_intermediate_size"], activation) if has_shared else None,
        shared_gate=has_shared,
    )
    mixers = llama.attentions(raw, norm)
    if has_shared:
        mixers = [replace(mixer, qkv_bias=raw.get("qkv_bias", True)) for mixer in mixers]
    layers = [
        LayerConfig(mixer=mixer, ffn=experts if sparse else dense)
        for mixer, sparse in zip(mixers, sparse_layers(raw), strict=True)
    ]
    return llama.decoder_config(raw, norm, layers)


_SHARED = "model.layers.{i}.mlp.shared_expert"

NAMES = (
    llama.NAMES
    | expert_names("model.layers.{i}.mlp")
    | {
        "layers.{i}.ffn.shared.gate_up": (f"{_SHARED}.gate_proj", f"{_SHARED}.up_proj"),
        "layers.{i}.ffn.shared.down": f"{_SHARED}.down_proj",
        "layers.{i}.ffn.shared_gate": f"{_SHARED}_gate",
    }
)

FAMILY = Family(model_types=("qwen2_moe", "qwen3_moe"), read_config=read_config, names=NAMES)
