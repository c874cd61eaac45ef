"""T5 (arXiv 1910.10683), with its version 1.1 and Flan-T5, and its encoder alone.

Pre-norm with RMSNorm, no biases, scores that are not scaled, and positions in buckets whose table the first layer of
each stack shares with the others.
"""

from __future__ import annotations

from typing import Any

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.cross_attention import CrossAttentionConfig
from wootz.models.blocks.mlp import GatedMLPConfig, MLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import LayerConfig, PartConfig
from wootz.models.encoder import EncoderConfig
from wootz.models.encoder_decoder import EncoderDecoderConfig, WritingLayerConfig
from wootz.models.families.family import Family, ModelConfig, end_tokens
from wootz.models.pooling import PoolingConfig
from wootz.models.positions.t5 import T5BucketsConfig


def _attention(ours: str, theirs: str) -> dict[str, str | tuple[str, ...]]:
    return {
        f"{ours}.mixer_norm": f"{theirs}.layer.0.layer_norm",
        f"{ours}.mixer.qkv": tuple(f"{theirs}.layer.0.SelfAttention.{part}" for part in "qkv"),
        f"{ours}.mixer.output": f"{theirs}.layer.0.SelfAttention.o",
        f"{ours}.mixer.score_bias.table": f"{theirs}.layer.0.SelfAttention.relative_attention_bias",
    }


def _feed_forward(ours: str, theirs: str) -> dict[str, str | tuple[str, ...]]:
    return {
        f"{ours}.ffn_norm": f"{theirs}.layer_norm",
        f"{ours}.ffn.up": f"{theirs}.DenseReluDense.wi",
        f"{ours}.ffn.gate_up": (f"{theirs}.DenseReluDense.wi_0", f"{theirs}.DenseReluDense.wi_1"),
        f"{ours}.ffn.down": f"{theirs}.DenseReluDense.wo",
    }


def _encoder(prefix: str) -> dict[str, str | tuple[str, ...]]:
    return {
        f"{prefix}norm": "encoder.final_layer_norm",
        **_attention(f"{prefix}layers.{{i}}", "encoder.block.{i}"),
        **_feed_forward(f"{prefix}layers.{{i}}", "encoder.block.{i}.layer.1"),
    }


CONSULT, CROSS = "layers.{i}.consult", "decoder.block.{i}.layer.1"
NAMES = {
    "embedding": "shared",
    "head": "lm_head",
    **_encoder(""),
    **_encoder("encoder."),
    "final_norm": "decoder.final_layer_norm",
    **_attention("layers.{i}.attend", "decoder.block.{i}"),
    f"{CONSULT}.mixer_norm": f"{CROSS}.layer_norm",
    f"{CONSULT}.mixer.query": f"{CROSS}.EncDecAttention.q",
    f"{CONSULT}.mixer.key_value": (f"{CROSS}.EncDecAttention.k", f"{CROSS}.EncDecAttention.v"),
    f"{CONSULT}.mixer.output": f"{CROSS}.EncDecAttention.o",
    **_feed_forward(CONSULT, "decoder.block.{i}.layer.2"),
}
IGNORED = (r"encoder\.embed_tokens\.weight", r"decoder\..*", r"lm_head\.weight")
"""What an encoder alone leaves out, and copies of the embedding. What a model needs is missed, ignored or not."""


def read_config(raw: dict[str, Any]) -> ModelConfig:
    norm = NormConfig("rms", raw.get("layer_norm_epsilon", 1e-6))
    ffn = _ffn(raw)
    encoder = EncoderConfig(
        family="t5",
        vocab_size=raw["vocab_size"],
        hidden_size=raw["d_model"],
        layers=(LayerConfig(mixer=_self_attention(raw, causal=False), ffn=ffn),) * raw["num_layers"],
        norm=norm,
        max_position_embeddings=raw.get("n_positions", 512),
        embedding_norm=False,
        final_norm=True,
        shared=("mixer.score_bias",),
        pooling=PoolingConfig(**raw.get("pooling", {})),
        raw=raw,
    )
    if "T5EncoderModel" in (raw.get("architectures") or ()):
        return encoder
    cross = CrossAttentionConfig(num_heads=raw["num_heads"], head_dim=raw["d_kv"], scale=1.0)
    layer = WritingLayerConfig(
        attend=LayerConfig(mixer=_self_attention(raw, causal=True)), consult=LayerConfig(mixer=cross, ffn=ffn)
    )
    # Version 1.1 has a head of its own, and hidden states go into it as they are.
    tied = raw.get("tie_word_embeddings", True)
    return EncoderDecoderConfig(
        family="t5",
        encoder=encoder,
        layers=(layer,) * (raw.get("num_decoder_layers") or raw["num_layers"]),
        norm=norm,
        shared=("attend.mixer.score_bias",),
        tie_embeddings=tied,
        logit_scale=raw["d_model"] ** -0.5 if raw.get("scale_decoder_outputs", tied) else 1.0,
        start_token_id=raw.get("decoder_start_token_id") or raw.get("pad_token_id") or 0,
        eos_token_ids=end_tokens(raw),
        raw=raw,
    )


def _self_attention(raw: dict[str, Any], *, causal: bool) -> AttentionConfig:
    buckets, longest = raw.get("relative_attention_num_buckets", 32), raw.get("relative_attention_max_distance", 128)
    return AttentionConfig(
        num_heads=raw["num_heads"],
        num_kv_heads=raw["num_heads"],
        head_dim=raw["d_kv"],
        score_bias=T5BucketsConfig(buckets, longest, bidirectional=not causal),
        scale=1.0,
        causal=causal,
    )


def _ffn(raw: dict[str, Any]) -> PartConfig:
    gate, _, activation = raw.get("feed_forward_proj", "relu").rpartition("-")
    if gate == "gated":
        return GatedMLPConfig(raw["d_ff"], "gelu_new" if activation == "gelu" else activation)
    return MLPConfig(raw["d_ff"], activation, bias=False)


FAMILY = Family(model_types=("t5",), read_config=read_config, names=NAMES, ignored=IGNORED)
