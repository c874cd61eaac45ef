"""Llama 2 and 3, SmolLM2, Mistral, Qwen2, Qwen3 (dense): one decoder with a few switches.

They differ in less than their names suggest: Mistral has a sliding window; Qwen2 puts a bias on queries, keys and
values; Qwen3 normalises each query and key head; Llama 3.1 scales its rotary frequencies.
"""

from __future__ import annotations

from typing import Any

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families.family import Family, context_length, end_tokens, rope_parameters, rope_scaling, windows
from wootz.models.positions.rotary import RotaryConfig

NAMES = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "layers.{i}.mixer_norm": "model.layers.{i}.input_layernorm",
    "layers.{i}.mixer.qkv": tuple(f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv"),
    "layers.{i}.mixer.q_norm": "model.layers.{i}.self_attn.q_norm",
    "layers.{i}.mixer.k_norm": "model.layers.{i}.self_attn.k_norm",
    "layers.{i}.mixer.output": "model.layers.{i}.self_attn.o_proj",
    "layers.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "layers.{i}.ffn.gate_up": ("model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"),
    "layers.{i}.ffn.down": "model.layers.{i}.mlp.down_proj",
}


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    norm = NormConfig("rms", raw["rms_norm_eps"])
    ffn = GatedMLPConfig(raw["intermediate_size"], raw.get("hidden_act", "silu"), bias=raw.get("mlp_bias", False))
    return decoder_config(raw, norm, [LayerConfig(mixer=mixer, ffn=ffn) for mixer in attentions(raw, norm)])


def attentions(raw: dict[str, Any], norm: NormConfig) -> list[AttentionConfig]:
    """Each layer's attention."""
    family = raw["model_type"]
    num_heads = raw["num_attention_heads"]
    head_dim = raw.get("head_dim") or raw["hidden_size"] // num_heads
    bias, rope = raw.get("attention_bias", False), rope_parameters(raw)
    windowed = family.startswith("mi") or raw.get("use_sliding_window", False)
    return [
        AttentionConfig(
            num_heads=num_heads,
            num_kv_heads=raw.get("num_key_value_heads") or num_heads,
            head_dim=head_dim,
            qkv_bias=bias or family == "qwen2",
            output_bias=bias and family != "qwen2",
            rotary=RotaryConfig(head_dim, rope["rope_theta"], rope_scaling(rope)),
            qk_norm=norm if family.startswith("qwen3") else None,
            window=window,
        )
        for window in windows(raw, used=windowed)
    ]


def decoder_config(raw: dict[str, Any], norm: NormConfig, layers: list[LayerConfig], **switches: Any) -> DecoderConfig:
    """What all configs of this shape have in common, around their layers."""
    return DecoderConfig(
        family=raw["model_type"],
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        layers=tuple(layers),
        norm=norm,
        max_position_embeddings=context_length(raw),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=end_tokens(raw),
        raw=raw,
        **switches,
    )


FAMILY = Family(model_types=("llama", "mistral", "qwen2", "qwen3"), read_config=read_config, names=NAMES)
