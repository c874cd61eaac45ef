"""OLMo 2, whose layers normalise what their parts give back (and queries and keys over all heads), and OLMoE, with
experts and plain pre-norm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.moe import MoEConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.router import RouterConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families import llama
from wootz.models.families.experts import expert_names, num_experts
from wootz.models.families.family import Family, refuse_unless


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    norm = NormConfig("rms", raw["rms_norm_eps"])
    refuse_unless(raw.get("clip_qkv") is None, "clip_qkv is not supported: no published OLMo that we read uses it")
    mixers = [replace(mixer, qk_norm=norm, qk_norm_over="all") for mixer in llama.attentions(raw, norm)]
    if raw["model_type"] == "olmo2":
        ffn = GatedMLPConfig(raw["intermediate_size"], raw.get("hidden_act", "silu"))
        layers = [LayerConfig(mixer=mixer, ffn=ffn, norms="output") for mixer in mixers]
    else:
        layers = [LayerConfig(mixer=mixer, ffn=experts(raw)) for mixer in mixers]
    return llama.decoder_config(raw, norm, layers)


def experts(raw: dict[str, Any]) -> MoEConfig:
    router = RouterConfig(
        num_experts=num_experts(raw),
        top_k=raw["num_experts_per_tok"],
        gates="softmax_renormalised" if raw.get("norm_topk_prob", False) else "softmax",
    )
    return MoEConfig(
        router=router, intermediate_size=raw["intermediate_size"], activation=raw.get("hidden_act", "silu")
    )


NAMES = (
    llama.NAMES
    | expert_names("model.layers.{i}.mlp")
    | {
        "layers.{i}.mixer_output_norm": "model.layers.{i}.post_attention_layernorm",
        "layers.{i}.ffn_output_norm": "model.layers.{i}.post_feedforward_layernorm",
    }
)

FAMILY = Family(model_types=("olmo2", "olmoe"), read_config=read_config, names=NAMES)
