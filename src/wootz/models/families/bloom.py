"""BLOOM (arXiv 2211.05100): ALiBi, a norm right after the embedding, biases everywhere.

Its checkpoints keep each head's query, key and value rows together.
"""

from __future__ import annotations

from typing import Any

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.mlp import MLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families.family import Family, end_tokens, refuse_unless
from wootz.models.positions.alibi import ALiBiConfig

NAMES = {
    "embedding": "word_embeddings",
    "embedding_norm": "word_embeddings_layernorm",
    "norm": "ln_f",
    "head": "lm_head",
    "layers.{i}.mixer_norm": "h.{i}.input_layernorm",
    "layers.{i}.mixer.qkv": "h.{i}.self_attention.query_key_value",
    "layers.{i}.mixer.output": "h.{i}.self_attention.dense",
    "layers.{i}.ffn_norm": "h.{i}.post_attention_layernorm",
    "layers.{i}.ffn.up": "h.{i}.mlp.dense_h_to_4h",
    "layers.{i}.ffn.down": "h.{i}.mlp.dense_4h_to_h",
}


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    refuse_unless(
        not raw.get("apply_residual_connection_post_layernorm"),
        "apply_residual_connection_post_layernorm is not supported",
    )
    hidden_size = raw.get("hidden_size") or raw["n_embed"]
    num_heads = raw.get("n_head") or raw["num_attention_heads"]
    layer = LayerConfig(
        mixer=AttentionConfig(
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=hidden_size // num_heads,
            qkv_bias=True,
            qkv_by_group=True,
            output_bias=True,
            score_bias=ALiBiConfig(),
        ),
        ffn=MLPConfig(4 * hidden_size, "gelu_pytorch_tanh"),
    )
    return DecoderConfig(
        family="bloom",
        vocab_size=raw["vocab_size"],
        hidden_size=hidden_size,
        layers=(layer,) * (raw.get("n_layer") or raw["num_hidden_layers"]),
        norm=NormConfig("layer", raw["layer_norm_epsilon"]),
        max_position_embeddings=raw.get("seq_length", 2048),
        tie_embeddings=raw.get("tie_word_embeddings", True),
        embedding_norm=True,
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=end_tokens(raw),
        raw=raw,
    )


FAMILY = Family(model_types=("bloom",), read_config=read_config, names=NAMES, prefix="transformer.")
