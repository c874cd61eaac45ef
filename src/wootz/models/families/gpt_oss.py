"""gpt-oss: attention with a sink per head, windows in every second layer, biases everywhere, and experts whose gate and
up projections alternate, with a clamped SwiGLU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from wootz.models.blocks.experts import ClampedSwiGLU
from wootz.models.blocks.moe import MoEConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.router import RouterConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families import llama
from wootz.models.families.experts import num_experts
from wootz.models.families.family import Family, View, windows


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    norm = NormConfig("rms", raw["rms_norm_eps"])
    router = RouterConfig(
        num_experts=num_experts(raw), top_k=raw["num_experts_per_tok"], gates="softmax_selected", bias=True
    )
    ffn = MoEConfig(
        router=router,
        intermediate_size=raw["intermediate_size"],
        activation=ClampedSwiGLU(raw.get("swiglu_limit", 7.0), raw.get("swiglu_alpha", 1.702)),
        bias=True,
        interleaved=True,
    )
    types = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(raw["num_hidden_layers"])]
    mixers = llama.attentions({"attention_bias": True} | raw, norm)
    layers = [
        LayerConfig(mixer=replace(mixer, sinks=True, window=window), ffn=ffn)
        for mixer, window in zip(mixers, windows({"layer_types": types} | raw), strict=True)
    ]
    return llama.decoder_config(raw, norm, layers)


def transposed(theirs: str) -> View:
    """They keep a projection as ``(in, out)``."""

    def view(tensor_EOI: Tensor, layer: int) -> dict[str, Tensor]:
        return {theirs.replace("{i}", str(layer)): tensor_EOI.transpose(1, 2)}

    return view


_MLP = "model.layers.{i}.mlp"

NAMES = llama.NAMES | {
    "layers.{i}.mixer.sinks_H": "model.layers.{i}.self_attn.sinks",
    "layers.{i}.ffn.router.weight_ED": f"{_MLP}.router.weight",
    "layers.{i}.ffn.router.bias_E": f"{_MLP}.router.bias",
    "layers.{i}.ffn.experts.gate_up.weight": transposed(f"{_MLP}.experts.gate_up_proj"),
    "layers.{i}.ffn.experts.gate_up.bias": f"{_MLP}.experts.gate_up_proj_bias",
    "layers.{i}.ffn.experts.down.weight": transposed(f"{_MLP}.experts.down_proj"),
    "layers.{i}.ffn.experts.down.bias": f"{_MLP}.experts.down_proj_bias",
}

FAMILY = Family(model_types=("gpt_oss",), read_config=read_config, names=NAMES)
