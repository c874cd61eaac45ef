"""Who may look at whom: the three kinds of transformer, out of one description.

decoder           each token at those before it; it writes
encoder           all at all; it reads
encoder-decoder   one text is read as a whole, another is written while looking at it
"""

from __future__ import annotations

from dataclasses import replace

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.cross_attention import CrossAttentionConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.encoder import EncoderConfig
from wootz.models.encoder_decoder import EncoderDecoderConfig, WritingLayerConfig
from wootz.models.families.family import ModelConfig, refuse_unless
from wootz.models.pooling import PoolingConfig
from wootz.models.positions.t5 import T5BucketsConfig

KINDS = ("decoder", "encoder", "encoder-decoder")


def of_kind(config: DecoderConfig, kind: str) -> ModelConfig:
    """A decoder's parts, put together as this kind. Raises ValueError where they do not fit."""
    refuse_unless(kind in KINDS, f'kind "{kind}" is not known ({", ".join(KINDS)} are)')
    return {"encoder": encoder, "encoder-decoder": encoder_decoder}[kind](config) if kind != "decoder" else config


def encoder(config: DecoderConfig) -> EncoderConfig:
    return EncoderConfig(
        family=config.family,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layers=tuple(replace(layer, mixer=_both_ways(_attention(layer))) for layer in config.layers),
        norm=config.norm,
        max_position_embeddings=config.max_position_embeddings,
        embedding_positions=config.embedding_positions,
        embedding_norm=config.embedding_norm,
        final_norm=config.final_norm,
        pooling=PoolingConfig(**config.raw.get("pooling", {})),
        raw=config.raw,
    )


def encoder_decoder(config: DecoderConfig) -> EncoderDecoderConfig:
    refuse_unless(config.embedding_positions is None, "an encoder-decoder has its positions in queries, keys or scores")

    def writing(layer: LayerConfig) -> WritingLayerConfig:
        mixer = _attention(layer)
        cross = CrossAttentionConfig(num_heads=mixer.num_heads, head_dim=mixer.head_dim, scale=mixer.scale)
        return WritingLayerConfig(attend=replace(layer, ffn=None), consult=replace(layer, mixer=cross))

    return EncoderDecoderConfig(
        family=config.family,
        encoder=encoder(config),
        layers=tuple(map(writing, config.layers)),
        norm=config.norm,
        tie_embeddings=config.tie_embeddings,
        start_token_id=config.bos_token_id or 0,
        eos_token_ids=config.eos_token_ids,
        raw=config.raw,
    )


def _attention(layer: LayerConfig) -> AttentionConfig:
    if not isinstance(layer.mixer, AttentionConfig):
        raise ValueError("only attention can look both ways; an encoder's layers are A or W")
    return layer.mixer


def _both_ways(attention: AttentionConfig) -> AttentionConfig:
    bias = attention.score_bias
    bias = replace(bias, bidirectional=True) if isinstance(bias, T5BucketsConfig) else bias
    return replace(attention, causal=False, score_bias=bias)
