"""BERT (arXiv 1810.04805), and all that was made from it: MiniLM, BGE, E5, and cross-encoders with a head on top.

Post-norm layers that look both ways, learned positions, a type for each of a pair's two texts.
"""

from __future__ import annotations

from typing import Any

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.mlp import MLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import LayerConfig
from wootz.models.encoder import EncoderConfig
from wootz.models.families.family import Family, refuse_unless
from wootz.models.pooling import PoolingConfig
from wootz.models.positions.learned import LearnedConfig

NAMES = {
    "embedding": "embeddings.word_embeddings",
    "embedding_positions.table": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "layers.{i}.mixer.qkv": tuple(f"encoder.layer.{{i}}.attention.self.{part}" for part in ("query", "key", "value")),
    "layers.{i}.mixer.output": "encoder.layer.{i}.attention.output.dense",
    "layers.{i}.mixer_output_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "layers.{i}.ffn.up": "encoder.layer.{i}.intermediate.dense",
    "layers.{i}.ffn.down": "encoder.layer.{i}.output.dense",
    "layers.{i}.ffn_output_norm": "encoder.layer.{i}.output.LayerNorm",
    "pooler": "pooler.dense",
    "classifier": "classifier",
}
IGNORED = (r"embeddings\.position_ids", r"pooler\.dense\.(weight|bias)", r"cls\..*", r"lm_head\..*")
"""A pooler that nothing reads, and the heads that pretraining used."""


def read_config(raw: dict[str, Any]) -> EncoderConfig:
    refuse_unless(
        raw.get("position_embedding_type", "absolute") == "absolute",
        f'position_embedding_type "{raw.get("position_embedding_type")}" is not supported',
    )
    return encoder_config(raw, LearnedConfig(raw["max_position_embeddings"]))


def encoder_config(raw: dict[str, Any], positions: LearnedConfig) -> EncoderConfig:
    """What BERT and RoBERTa have in common."""
    refuse_unless(not raw.get("is_decoder"), "an encoder that was turned into a decoder is not supported")
    num_heads = raw["num_attention_heads"]
    layer = LayerConfig(
        mixer=AttentionConfig(
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=raw["hidden_size"] // num_heads,
            qkv_bias=True,
            output_bias=True,
            causal=False,
        ),
        ffn=MLPConfig(raw["intermediate_size"], raw.get("hidden_act", "gelu"), bias=True),
        norms="post",
    )
    return EncoderConfig(
        family=raw["model_type"],
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        layers=(layer,) * raw["num_hidden_layers"],
        norm=NormConfig("layer", raw.get("layer_norm_eps", 1e-12)),
        max_position_embeddings=positions.num_positions,
        num_token_types=raw.get("type_vocab_size", 2),
        embedding_positions=positions,
        pooling=PoolingConfig(**raw.get("pooling", {})),
        num_labels=num_labels(raw),
        raw=raw,
    )


def num_labels(raw: dict[str, Any]) -> int | None:
    """Of a sequence-classification model; transformers leaves its default of two labels out of ``config.json``."""
    if not any(name.endswith("ForSequenceClassification") for name in raw.get("architectures") or ()):
        return None
    return len(raw.get("id2label") or (0, 1))


FAMILY = Family(model_types=("bert",), read_config=read_config, names=NAMES, prefix="bert.", ignored=IGNORED)
