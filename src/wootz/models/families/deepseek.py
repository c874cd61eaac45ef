"""DeepSeek-V2 and -V3 (R1 included): latent attention, a few dense layers, then many small experts and shared ones."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from wootz.models.blocks.latent_attention import LatentAttentionConfig
from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.moe import MoEConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.router import RouterConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families import llama
from wootz.models.families.experts import expert_names, num_experts
from wootz.models.families.family import Family, View, refuse_unless, rope_parameters, rope_scaling
from wootz.models.positions.rotary import RotaryConfig


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    norm, mixer = NormConfig("rms", raw["rms_norm_eps"]), attention(raw)
    dense, sparse = GatedMLPConfig(raw["intermediate_size"], raw.get("hidden_act", "silu")), experts(raw)
    num_dense = raw.get("first_k_dense_replace", 0)
    layers = [
        LayerConfig(mixer=mixer, ffn=dense if layer < num_dense else sparse)
        for layer in range(raw["num_hidden_layers"])
    ]
    return llama.decoder_config(raw, norm, layers)


def attention(raw: dict[str, Any]) -> LatentAttentionConfig:
    plain_dim, rotary_dim = raw["qk_nope_head_dim"], raw["qk_rope_head_dim"]
    rope = rope_parameters(raw)
    scale = (plain_dim + rotary_dim) ** -0.5
    if rope.get("rope_type", rope.get("type", "default")) != "default" and (mscale := rope.get("mscale_all_dim")):
        scale *= (1.0 + 0.1 * mscale * math.log(rope["factor"])) ** 2  # YaRN's temperature
    return LatentAttentionConfig(
        num_heads=raw["num_attention_heads"],
        latent_dim=raw["kv_lora_rank"],
        plain_dim=plain_dim,
        value_dim=raw["v_head_dim"],
        rotary=RotaryConfig(
            rotary_dim, rope["rope_theta"], rope_scaling(rope), interleaved=raw.get("rope_interleave", True)
        ),
        query_latent_dim=raw.get("q_lora_rank"),
        scale=scale,
        bias=raw.get("attention_bias", False),
    )


def experts(raw: dict[str, Any]) -> MoEConfig:
    width, activation = raw["moe_intermediate_size"], raw.get("hidden_act", "silu")
    num_shared = raw.get("n_shared_experts")
    is_v3 = raw["model_type"] == "deepseek_v3"
    in_groups = is_v3 or raw.get("topk_method") == "group_limited_greedy"
    renormalise = raw.get("norm_topk_prob", is_v3)
    refuse_unless(is_v3 or not renormalise, "norm_topk_prob is not supported: no published DeepSeek-V2 has it")
    router = RouterConfig(
        num_experts=num_experts(raw),
        top_k=raw["num_experts_per_tok"],
        gates="softmax" if not is_v3 else "sigmoid_renormalised" if renormalise else "sigmoid",
        scaling=raw.get("routed_scaling_factor", 1.0),
        balance_bias=is_v3,
        num_groups=(raw.get("n_group") or 1) if in_groups else 1,
        top_groups=(raw.get("topk_group") or 1) if in_groups else 1,
        group_score="top2" if is_v3 else "max",
    )
    shared = GatedMLPConfig(num_shared * width, activation) if num_shared else None
    return MoEConfig(router=router, intermediate_size=width, activation=activation, shared=shared)


def by_rows(theirs: str) -> View:
    """Each head's rows one below the other."""

    def view(tensor_Hxr: Tensor, layer: int) -> dict[str, Tensor]:
        return {theirs.replace("{i}", str(layer)): tensor_Hxr.flatten(0, 1)}

    return view


_ATTENTION, _MLP = "model.layers.{i}.self_attn", "model.layers.{i}.mlp"

NAMES = (
    llama.NAMES
    | expert_names(_MLP)
    | {
        "layers.{i}.mixer.q.direct": f"{_ATTENTION}.q_proj",
        "layers.{i}.mixer.q.down": f"{_ATTENTION}.q_a_proj",
        "layers.{i}.mixer.q.norm": f"{_ATTENTION}.q_a_layernorm",
        "layers.{i}.mixer.q.up": f"{_ATTENTION}.q_b_proj",
        "layers.{i}.mixer.kv_down": f"{_ATTENTION}.kv_a_proj_with_mqa",
        "layers.{i}.mixer.kv_norm": f"{_ATTENTION}.kv_a_layernorm",
        "layers.{i}.mixer.kv_up": by_rows(f"{_ATTENTION}.kv_b_proj.weight"),
        "layers.{i}.ffn.router.balance_bias_E": f"{_MLP}.gate.e_score_correction_bias",
        "layers.{i}.ffn.shared.gate_up": (f"{_MLP}.shared_experts.gate_proj", f"{_MLP}.shared_experts.up_proj"),
        "layers.{i}.ffn.shared.down": f"{_MLP}.shared_experts.down_proj",
    }
)

FAMILY = Family(
    model_types=("deepseek_v2", "deepseek_v3"),
    read_config=read_config,
    names=NAMES,
    ignored=(r"model\.layers\.61\..*",),  # V3's predictor of the token after next, which generation does without
)
