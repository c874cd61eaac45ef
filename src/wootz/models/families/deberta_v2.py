"""DeBERTa versions 2 and 3 (arXiv 2006.03654, 2111.09543): BERT's layers around disentangled attention. As a rule
there are no positions in the embeddings at all."""

from __future__ import annotations

from typing import Any

from wootz.models.blocks.disentangled_attention import DisentangledAttentionConfig
from wootz.models.blocks.mlp import MLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import LayerConfig
from wootz.models.encoder import EncoderConfig
from wootz.models.families import bert
from wootz.models.families.family import Family, refuse_unless
from wootz.models.pooling import PoolingConfig
from wootz.models.positions.deberta import OffsetBuckets
from wootz.models.positions.learned import LearnedConfig

ATTENTION = "encoder.layer.{i}.attention.self."
NAMES = bert.NAMES | {
    "layers.{i}.mixer.qkv": (f"{ATTENTION}query_proj", f"{ATTENTION}key_proj", f"{ATTENTION}value_proj"),
    "layers.{i}.mixer.offset_key": f"{ATTENTION}pos_key_proj",
    "layers.{i}.mixer.offset_query": f"{ATTENTION}pos_query_proj",
    "layers.{i}.mixer.offset_table.table": "encoder.rel_embeddings",
    "layers.{i}.mixer.offset_table.norm": "encoder.LayerNorm",
}
IGNORED = (*bert.IGNORED, r"lm_predictions\..*", r"mask_predictions\..*", r"embeddings\.position_embeddings\.weight")


def read_config(raw: dict[str, Any]) -> EncoderConfig:
    hidden_size, longest = raw["hidden_size"], raw["max_position_embeddings"]
    terms = raw.get("pos_att_type") or []
    terms = terms.split("|") if isinstance(terms, str) else terms
    refuse_unless(raw.get("relative_attention"), "DeBERTa without relative_attention is not supported")
    refuse_unless(raw.get("conv_kernel_size", 0) < 1, "DeBERTa with a convolution is not supported")
    refuse_unless(raw.get("embedding_size", hidden_size) == hidden_size, "embedding_size must equal hidden_size")
    norm = NormConfig("layer", raw.get("layer_norm_eps", 1e-7))
    layer = LayerConfig(
        mixer=DisentangledAttentionConfig(
            num_heads=raw["num_attention_heads"],
            offsets=OffsetBuckets(
                _positive(raw.get("max_relative_positions")) or longest, _positive(raw.get("position_buckets"))
            ),
            content_to_position="c2p" in terms,
            position_to_content="p2c" in terms,
            share_projections=raw.get("share_att_key", False),
            table_norm=norm if "layer_norm" in raw.get("norm_rel_ebd", "none") else None,
        ),
        ffn=MLPConfig(raw["intermediate_size"], raw.get("hidden_act", "gelu")),
        norms="post",
    )
    return EncoderConfig(
        family="deberta-v2",
        vocab_size=raw["vocab_size"],
        hidden_size=hidden_size,
        layers=(layer,) * raw["num_hidden_layers"],
        norm=norm,
        max_position_embeddings=longest,
        num_token_types=raw.get("type_vocab_size", 0),
        embedding_positions=LearnedConfig(longest) if raw.get("position_biased_input", True) else None,
        shared=("mixer.offset_table",),
        pooling=PoolingConfig(**raw.get("pooling", {})),
        num_labels=bert.num_labels(raw),
        pooler_activation=raw.get("pooler_hidden_act", "gelu"),
        raw=raw,
    )


def _positive(number: int | None) -> int:
    """Configs say -1 for none."""
    return max(number or 0, 0)


FAMILY = Family(model_types=("deberta-v2",), read_config=read_config, names=NAMES, prefix="deberta.", ignored=IGNORED)
