"""Mixtral: Mistral with eight gated MLPs in each layer, of which a token takes two."""

from __future__ import annotations

from typing import Any

from wootz.models.blocks.moe import MoEConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.router import RouterConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families import llama
from wootz.models.families.experts import expert_names
from wootz.models.families.family import Family


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    norm = NormConfig("rms", raw["rms_norm_eps"])
    router = RouterConfig(
        num_experts=raw["num_local_experts"],
        top_k=raw["num_experts_per_tok"],
        gates="softmax_renormalised",
        jitter=raw.get("router_jitter_noise", 0.0),
    )
    ffn = MoEConfig(router=router, intermediate_size=raw["intermediate_size"], activation=raw.get("hidden_act", "silu"))
    return llama.decoder_config(raw, norm, [LayerConfig(mixer=mixer, ffn=ffn) for mixer in llama.attentions(raw, norm)])


NAMES = llama.NAMES | expert_names("model.layers.{i}.block_sparse_moe", projections=("w1", "w3", "w2"))

FAMILY = Family(model_types=("mixtral",), read_config=read_config, names=NAMES)
