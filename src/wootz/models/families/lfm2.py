"""LFM2: gated short convolutions, and attention at some depths."""

from __future__ import annotations

from typing import Any

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.gated_conv import GatedConvConfig
from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families import llama
from wootz.models.families.family import Family, rope_parameters, rope_scaling
from wootz.models.positions.rotary import RotaryConfig

LAYER = "model.layers.{i}"
NAMES = {
    **llama.NAMES,
    "norm": "model.embedding_norm",  # it is the last norm all the same
    "layers.{i}.mixer_norm": f"{LAYER}.operator_norm",
    "layers.{i}.mixer.q_norm": f"{LAYER}.self_attn.q_layernorm",
    "layers.{i}.mixer.k_norm": f"{LAYER}.self_attn.k_layernorm",
    "layers.{i}.mixer.output": f"{LAYER}.self_attn.out_proj",
    **{f"layers.{{i}}.mixer.{part}": f"{LAYER}.conv.{part}" for part in ("in_proj", "conv", "out_proj")},
    "layers.{i}.ffn_norm": f"{LAYER}.ffn_norm",
    "layers.{i}.ffn.gate_up": (f"{LAYER}.feed_forward.w1", f"{LAYER}.feed_forward.w3"),
    "layers.{i}.ffn.down": f"{LAYER}.feed_forward.w2",
}


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    norm, rope = NormConfig("rms", raw["norm_eps"]), rope_parameters({"rope_theta": 1e6} | raw)
    num_layers, num_heads = raw["num_hidden_layers"], raw["num_attention_heads"]
    head_dim = raw["hidden_size"] // num_heads
    attention = AttentionConfig(
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        rotary=RotaryConfig(head_dim, rope["rope_theta"], rope_scaling(rope)),
        qk_norm=norm,
    )
    conv = GatedConvConfig(raw.get("conv_L_cache", 3), raw.get("conv_bias", False))
    with_attention = raw.get("full_attn_idxs")
    kinds = raw.get("layer_types") or [
        "full_attention" if with_attention is None or number in with_attention else "conv"
        for number in range(num_layers)
    ]
    ffn = GatedMLPConfig(_width(raw))
    layers = [LayerConfig(mixer=conv if kind == "conv" else attention, ffn=ffn) for kind in kinds]
    raw = {"tie_word_embeddings": raw.get("tie_embedding", True)} | raw
    return llama.decoder_config(raw, norm, layers)


def _width(raw: dict[str, Any]) -> int:
    """``intermediate_size`` is that of an MLP with two matrices, unless the config says otherwise."""
    width = raw.get("block_ff_dim") or raw["intermediate_size"]
    if not raw.get("block_auto_adjust_ff_dim", True):
        return width
    width, multiplier, multiple = (
        2 * width // 3,
        raw.get("block_ffn_dim_multiplier", 1.0),
        raw.get("block_multiple_of", 256),
    )
    return width if multiplier is None else -(-int(multiplier * width) // multiple) * multiple


FAMILY = Family(model_types=("lfm2",), read_config=read_config, names=NAMES)
