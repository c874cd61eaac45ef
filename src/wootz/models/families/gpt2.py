"""GPT-2: learned positions, pre-norm, biases everywhere; its checkpoints keep projections transposed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.mlp import MLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families.family import Family, View, end_tokens, refuse_unless
from wootz.models.positions.learned import LearnedConfig

PROJECTIONS = {
    "layers.{i}.mixer.qkv": "h.{i}.attn.c_attn",
    "layers.{i}.mixer.output": "h.{i}.attn.c_proj",
    "layers.{i}.ffn.up": "h.{i}.mlp.c_fc",
    "layers.{i}.ffn.down": "h.{i}.mlp.c_proj",
}


def transposed(theirs: str) -> View:
    def view(weight: Tensor, layer: int) -> dict[str, Tensor]:
        return {f"{theirs.replace('{i}', str(layer))}.weight": weight.T}

    return view


NAMES = {
    "embedding": "wte",
    "embedding_positions.table": "wpe",
    "norm": "ln_f",
    "head": "lm_head",
    "layers.{i}.mixer_norm": "h.{i}.ln_1",
    "layers.{i}.ffn_norm": "h.{i}.ln_2",
    **PROJECTIONS,
    **{f"{ours}.weight": transposed(theirs) for ours, theirs in PROJECTIONS.items()},
}


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    hidden_size, num_heads = raw["n_embd"], raw["n_head"]
    refuse_unless(not raw.get("add_cross_attention"), "cross-attention in GPT-2 is not supported")
    scale = (hidden_size // num_heads) ** -0.5 if raw.get("scale_attn_weights", True) else 1.0
    by_depth = raw.get("scale_attn_by_inverse_layer_idx", False)
    layers = tuple(
        LayerConfig(
            mixer=AttentionConfig(
                num_heads=num_heads,
                num_kv_heads=num_heads,
                head_dim=hidden_size // num_heads,
                qkv_bias=True,
                output_bias=True,
                scale=scale / (depth if by_depth else 1),
            ),
            ffn=MLPConfig(raw.get("n_inner") or 4 * hidden_size, raw.get("activation_function", "gelu_new")),
        )
        for depth in range(1, raw["n_layer"] + 1)
    )
    return DecoderConfig(
        family="gpt2",
        vocab_size=raw["vocab_size"],
        hidden_size=hidden_size,
        layers=layers,
        norm=NormConfig("layer", raw.get("layer_norm_epsilon", 1e-5)),
        max_position_embeddings=raw["n_positions"],
        tie_embeddings=raw.get("tie_word_embeddings", True),
        embedding_positions=LearnedConfig(raw["n_positions"]),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=end_tokens(raw),
        raw=raw,
    )


FAMILY = Family(
    model_types=("gpt2",),
    read_config=read_config,
    names=NAMES,
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.(bias|masked_bias)",),  # old exports carry the causal mask
)
