"""MPT (MosaicML, 2023): ALiBi and not a single bias."""

from __future__ import annotations

from typing import Any

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.mlp import MLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families.family import Family, end_tokens, refuse_unless
from wootz.models.positions.alibi import ALiBiConfig

NAMES = {
    "embedding": "wte",
    "norm": "norm_f",
    "head": "lm_head",
    "layers.{i}.mixer_norm": "blocks.{i}.norm_1",
    "layers.{i}.mixer.qkv": "blocks.{i}.attn.Wqkv",
    "layers.{i}.mixer.output": "blocks.{i}.attn.out_proj",
    "layers.{i}.ffn_norm": "blocks.{i}.norm_2",
    "layers.{i}.ffn.up": "blocks.{i}.ffn.up_proj",
    "layers.{i}.ffn.down": "blocks.{i}.ffn.down_proj",
}
UNSUPPORTED = {"alibi": False, "qk_ln": True, "prefix_lm": True, "attn_type": "multiquery_attention"}


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    hidden_size, num_heads = raw["d_model"], raw["n_heads"]
    attention = raw.get("attn_config") or {}
    for name, value in UNSUPPORTED.items():
        refuse_unless(attention.get(name) != value, f"attn_config.{name} = {value} is not supported")
    refuse_unless(not attention.get("clip_qkv"), "attn_config.clip_qkv is not supported")
    refuse_unless(raw.get("logit_scale") is None, "logit_scale is not supported")
    layer = LayerConfig(
        mixer=AttentionConfig(
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=hidden_size // num_heads,
            score_bias=ALiBiConfig(attention.get("alibi_bias_max", 8)),
            scale=attention.get("softmax_scale"),
        ),
        ffn=MLPConfig(raw.get("expansion_ratio", 4) * hidden_size, "gelu", bias=False),
    )
    return DecoderConfig(
        family="mpt",
        vocab_size=raw["vocab_size"],
        hidden_size=hidden_size,
        layers=(layer,) * raw["n_layers"],
        norm=NormConfig("layer", raw.get("layer_norm_epsilon", 1e-5), bias=False),
        max_position_embeddings=raw["max_seq_len"],
        tie_embeddings=raw.get("tie_word_embeddings", True),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=end_tokens(raw),
        raw=raw,
    )


FAMILY = Family(model_types=("mpt",), read_config=read_config, names=NAMES, prefix="transformer.")
