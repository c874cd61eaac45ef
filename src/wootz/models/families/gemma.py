"""Gemma 2 and 3, text. Norms on both sides of each part, whose weights are kept around zero; embeddings scaled up by
``sqrt(D)``; windows in most layers.

Gemma 2 caps scores and logits by a tanh; Gemma 3 normalises queries and keys instead, and its windowed layers turn
faster than the full ones. A multimodal Gemma 3 is read as the text model that it contains, and saved as that.
"""

from __future__ import annotations

import math
from typing import Any

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families import llama
from wootz.models.families.family import Family, refuse_unless, rope_parameters, rope_scaling, windows
from wootz.models.positions.rotary import RotaryConfig

# Published configs leave out what equals these.
COMMON = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": {"max_position_embeddings": 8192, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {"max_position_embeddings": 131_072, "vocab_size": 262_208, "rope_theta": 1_000_000.0},
}


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    if raw["model_type"] == "gemma3":
        raw = raw["text_config"] | {"model_type": "gemma3_text"}
    raw = COMMON | DEFAULTS[raw["model_type"]] | raw
    refuse_unless(not raw.get("use_bidirectional_attention"), "a Gemma that looks ahead is an encoder, not a decoder")
    raw["layer_types"] = raw.get("layer_types") or layer_types(raw)
    norm = NormConfig("rms", raw["rms_norm_eps"], offset=1.0)
    ffn = GatedMLPConfig(raw["intermediate_size"], raw["hidden_activation"])
    return llama.decoder_config(
        raw,
        norm,
        [LayerConfig(mixer=mixer, ffn=ffn, norms="sandwich") for mixer in attentions(raw, norm)],
        embedding_scale=math.sqrt(raw["hidden_size"]),
        logit_softcap=raw.get("final_logit_softcapping"),
    )


def attentions(raw: dict[str, Any], norm: NormConfig) -> list[AttentionConfig]:
    return [
        AttentionConfig(
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw["num_key_value_heads"],
            head_dim=raw["head_dim"],
            qkv_bias=raw.get("attention_bias", False),
            output_bias=raw.get("attention_bias", False),
            rotary=rotary(raw, layer_type),
            qk_norm=norm if raw["model_type"] == "gemma3_text" else None,
            scale=raw["query_pre_attn_scalar"] ** -0.5,
            window=window,
            softcap=raw.get("attn_logit_softcapping"),
        )
        for layer_type, window in zip(raw["layer_types"], windows(raw), strict=True)
    ]


def layer_types(raw: dict[str, Any]) -> list[str]:
    """Every second layer of Gemma 2, and every sixth of Gemma 3, looks at everything."""
    period = raw.get("sliding_window_pattern", 2 if raw["model_type"] == "gemma2" else 6)
    numbers = range(1, raw["num_hidden_layers"] + 1)
    return ["sliding_attention" if number % period else "full_attention" for number in numbers]


def rotary(raw: dict[str, Any], layer_type: str) -> RotaryConfig:
    rope = rope_parameters(raw, layer_type)
    by_layer_type = layer_type in (raw.get("rope_parameters") or {})
    if raw["model_type"] == "gemma3_text" and not by_layer_type:  # what stands there is for the full layers
        local = {"rope_theta": raw.get("rope_local_base_freq", 10_000.0)}
        rope = local if layer_type == "sliding_attention" else rope
    return RotaryConfig(raw["head_dim"], rope["rope_theta"], rope_scaling(rope))


NAMES = llama.NAMES | {
    "layers.{i}.mixer_output_norm": "model.layers.{i}.post_attention_layernorm",
    "layers.{i}.ffn_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "layers.{i}.ffn_output_norm": "model.layers.{i}.post_feedforward_layernorm",
}

FAMILY = Family(
    model_types=("gemma2", "gemma3_text", "gemma3"),
    read_config=read_config,
    names=NAMES,
    prefix="language_model.",
    ignored=(r"vision_tower\..*", r"multi_modal_projector\..*"),
)
