"""Mamba and Falcon-Mamba: nothing but selective scans."""

from __future__ import annotations

import math
from typing import Any

from wootz.models.blocks.mamba import MambaConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families.family import Family, end_tokens

UNBOUNDED = 1 << 17
"""These configs name no longest text: a state does not grow. The engine wants a number."""

MIXER = {
    "layers.{i}.mixer.in_proj": "mixer.in_proj",
    "layers.{i}.mixer.conv": "mixer.conv1d",
    "layers.{i}.mixer.choice": "mixer.x_proj",
    "layers.{i}.mixer.dt_weight": "mixer.dt_proj.weight",
    "layers.{i}.mixer.dt_bias": "mixer.dt_proj.bias",
    "layers.{i}.mixer.A_log": "mixer.A_log",
    "layers.{i}.mixer.D": "mixer.D",
    "layers.{i}.mixer.out_proj": "mixer.out_proj",
}
NAMES = {
    "embedding": "backbone.embeddings",
    "norm": "backbone.norm_f",
    "head": "lm_head",
    "layers.{i}.mixer_norm": "backbone.layers.{i}.norm",
    **{ours: f"backbone.layers.{{i}}.{theirs}" for ours, theirs in MIXER.items()},
}


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    rank = raw.get("time_step_rank", "auto")
    mixer = MambaConfig(
        intermediate_size=raw.get("intermediate_size") or int(raw.get("expand", 2) * raw["hidden_size"]),
        state_size=raw["state_size"],
        conv_width=raw["conv_kernel"],
        dt_rank=math.ceil(raw["hidden_size"] / 16) if rank == "auto" else rank,
        bias=raw.get("use_bias", False),
        conv_bias=raw.get("use_conv_bias", True),
        activation=raw.get("hidden_act", "silu"),
        inner_norm_eps=raw.get("mixer_rms_eps", 1e-6) if raw["model_type"] == "falcon_mamba" else None,
        inner_norm_weights=False,
    )
    return recurrent_config(raw, NormConfig("rms", raw["layer_norm_epsilon"]), LayerConfig(mixer=mixer))


def recurrent_config(raw: dict[str, Any], norm: NormConfig, layer: LayerConfig, **switches: Any) -> DecoderConfig:
    """A model of equal layers without positions."""
    return DecoderConfig(
        family=raw["model_type"],
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        layers=(layer,) * raw["num_hidden_layers"],
        norm=norm,
        max_position_embeddings=raw.get("max_position_embeddings") or UNBOUNDED,
        tie_embeddings=raw.get("tie_word_embeddings", True),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=end_tokens(raw),
        raw=raw,
        **switches,
    )


FAMILY = Family(model_types=("mamba", "falcon_mamba"), read_config=read_config, names=NAMES)
