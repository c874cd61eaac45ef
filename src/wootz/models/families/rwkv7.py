"""RWKV-7, with the names of the Hugging Face checkpoints (``RWKV/RWKV7-Goose-…-HF``, made by flash-linear-attention).

Transformers has no such class; the recurrence of arXiv 2503.14456 is what it is compared to.
"""

from __future__ import annotations

from typing import Any

from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.rwkv7 import RWKV7ChannelMixConfig, RWKV7Config
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families.family import Family, end_tokens, refuse_unless
from wootz.models.families.mamba import UNBOUNDED
from wootz.models.families.rwkv import per_channel

LAYER = "model.layers.{i}"
LOW_RANK = {"decay": "w_lora", "rate": "a_lora", "keep_own": "v_lora", "gate": "g_lora"}
NAMES = {
    "embedding": "model.embeddings",
    "embedding_norm": "model.layers.0.pre_norm",
    "norm": "model.norm",
    "head": "lm_head",
    "layers.{i}.mixer_norm": f"{LAYER}.attn_norm",
    **{f"layers.{{i}}.mixer.mix_{part}": per_channel(f"{LAYER}.attn.x_{part}") for part in "rwkvag"},
    "layers.{i}.mixer.receptance": f"{LAYER}.attn.r_proj",
    "layers.{i}.mixer.key": f"{LAYER}.attn.k_proj",
    "layers.{i}.mixer.value": f"{LAYER}.attn.v_proj",
    **{f"layers.{{i}}.mixer.{ours}.down": f"{LAYER}.attn.{theirs}.lora.0.weight" for ours, theirs in LOW_RANK.items()},
    **{f"layers.{{i}}.mixer.{ours}.up": f"{LAYER}.attn.{theirs}.lora.2.weight" for ours, theirs in LOW_RANK.items()},
    **{f"layers.{{i}}.mixer.{ours}.bias": f"{LAYER}.attn.{theirs}.lora.2.bias" for ours, theirs in LOW_RANK.items()},
    "layers.{i}.mixer.removal_scale": f"{LAYER}.attn.k_k",
    "layers.{i}.mixer.rate_in_key": f"{LAYER}.attn.k_a",
    "layers.{i}.mixer.bonus_Hd": f"{LAYER}.attn.r_k",
    "layers.{i}.mixer.norm": f"{LAYER}.attn.g_norm",
    "layers.{i}.mixer.out_proj": f"{LAYER}.attn.o_proj",
    "layers.{i}.ffn_norm": f"{LAYER}.ffn_norm",
    "layers.{i}.ffn.mix": f"{LAYER}.ffn.x_k",
    "layers.{i}.ffn.key": f"{LAYER}.ffn.key",
    "layers.{i}.ffn.value": f"{LAYER}.ffn.value",
}


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    size, eps = raw["hidden_size"], raw.get("norm_eps", 1e-5)
    widths = raw.get("value_dim") or size
    refuse_unless(not raw.get("attn"), "attention layers inside an RWKV-7 are not supported")
    refuse_unless(raw.get("norm_first", True), "norm_first: false is not supported")
    refuse_unless({size} == set(widths if isinstance(widths, list) else [widths]), "value_dim is not hidden_size")
    ratio = raw.get("hidden_ratio") or 4
    mixers = [
        RWKV7Config(
            head_dim=raw.get("head_dim") or size // raw["num_heads"],
            decay_rank=raw["decay_low_rank_dim"],
            rate_rank=raw["a_low_rank_dim"],
            value_rank=raw["v_low_rank_dim"],
            gate_rank=raw["gate_low_rank_dim"],
            first=number == 0,
            norm_eps=eps,
        )
        for number in range(raw["num_hidden_layers"])
    ]
    ffn = RWKV7ChannelMixConfig(raw.get("intermediate_size") or -(-int(size * ratio) // 32) * 32)
    return DecoderConfig(
        family=raw["model_type"],
        vocab_size=raw["vocab_size"],
        hidden_size=size,
        layers=tuple(LayerConfig(mixer=mixer, ffn=ffn) for mixer in mixers),
        norm=NormConfig("layer", eps, bias=raw.get("norm_bias", True)),
        embedding_norm=True,
        # No state grows, so the length that it was trained with does not bound the length that it can run.
        max_position_embeddings=UNBOUNDED,
        tie_embeddings=raw.get("tie_word_embeddings", False),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=end_tokens(raw),
        raw=raw,
    )


FAMILY = Family(model_types=("rwkv7", "rwkv7_fla"), read_config=read_config, names=NAMES)
