"""Granite 4 hybrids: Mamba-2 with some attention, no positions unless asked for, and experts beside a shared MLP, or
that MLP alone. Embeddings, residual additions, scores and logits are scaled by constants of the config."""

from __future__ import annotations

from typing import Any

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.moe import MoEConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.router import RouterConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families import llama
from wootz.models.families.bamba import MAMBA2_NAMES, mamba2_mixer
from wootz.models.families.family import Family, rope_parameters, rope_scaling
from wootz.models.positions.rotary import RotaryConfig

LAYER = "model.layers.{i}"
NAMES = {
    **llama.NAMES,
    **MAMBA2_NAMES,
    "layers.{i}.ffn.gate_up": f"{LAYER}.shared_mlp.input_linear",
    "layers.{i}.ffn.down": f"{LAYER}.shared_mlp.output_linear",
    "layers.{i}.ffn.shared.gate_up": f"{LAYER}.shared_mlp.input_linear",
    "layers.{i}.ffn.shared.down": f"{LAYER}.shared_mlp.output_linear",
    "layers.{i}.ffn.router.weight_ED": f"{LAYER}.block_sparse_moe.router.layer.weight",
    "layers.{i}.ffn.experts.gate_up": f"{LAYER}.block_sparse_moe.input_linear",
    "layers.{i}.ffn.experts.down": f"{LAYER}.block_sparse_moe.output_linear",
}


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    norm, activation = NormConfig("rms", raw["rms_norm_eps"]), raw.get("hidden_act", "silu")
    shared = GatedMLPConfig(raw["shared_intermediate_size"], activation)
    ffn, num_experts = shared, raw.get("num_local_experts") or 0
    if num_experts:
        router = RouterConfig(num_experts=num_experts, top_k=raw["num_experts_per_tok"], gates="softmax_selected")
        ffn = MoEConfig(router=router, intermediate_size=raw["intermediate_size"], activation=activation, shared=shared)
    num_heads, rope = raw["num_attention_heads"], rope_parameters(raw)
    head_dim = raw["hidden_size"] // num_heads
    turns = raw.get("position_embedding_type") == "rope"
    attention = AttentionConfig(
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        qkv_bias=raw.get("attention_bias", False),
        output_bias=raw.get("attention_bias", False),
        rotary=RotaryConfig(head_dim, rope["rope_theta"], rope_scaling(rope)) if turns else None,
        scale=raw.get("attention_multiplier", 1.0),
    )
    mamba = mamba2_mixer(raw)
    kinds = raw.get("layer_types") or ["mamba"] * raw["num_hidden_layers"]
    layers = [
        LayerConfig(
            # Transformers 5 calls "full_attention" what the published configs call "attention".
            mixer=attention if kind.endswith("attention") and kind != "linear_attention" else mamba,
            ffn=ffn,
            residual_scale=raw.get("residual_multiplier", 1.0),
        )
        for kind in kinds
    ]
    return llama.decoder_config(
        raw,
        norm,
        layers,
        embedding_scale=raw.get("embedding_multiplier", 1.0),
        logit_scale=1.0 / raw.get("logits_scaling", 1.0),
    )


FAMILY = Family(model_types=("granitemoehybrid",), read_config=read_config, names=NAMES)
