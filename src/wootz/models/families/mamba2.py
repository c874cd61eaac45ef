"""Mamba-2: nothing but heads of decayed sums."""

from __future__ import annotations

from typing import Any

from wootz.models.blocks.mamba2 import Mamba2Config
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families.family import Family
from wootz.models.families.mamba import recurrent_config

MIXER = {
    "layers.{i}.mixer.in_proj": "in_proj",
    "layers.{i}.mixer.conv": "conv1d",
    "layers.{i}.mixer.dt_bias": "dt_bias",
    "layers.{i}.mixer.A_log": "A_log",
    "layers.{i}.mixer.D": "D",
    "layers.{i}.mixer.norm": "norm",
    "layers.{i}.mixer.out_proj": "out_proj",
}
NAMES = {
    "embedding": "backbone.embeddings",
    "norm": "backbone.norm_f",
    "head": "lm_head",
    "layers.{i}.mixer_norm": "backbone.layers.{i}.norm",
    **{ours: f"backbone.layers.{{i}}.mixer.{theirs}" for ours, theirs in MIXER.items()},
}


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    mixer = Mamba2Config(
        num_heads=raw["num_heads"],
        head_dim=raw["head_dim"],
        state_size=raw["state_size"],
        num_groups=raw["n_groups"],
        conv_width=raw["conv_kernel"],
        bias=raw.get("use_bias", False),
        conv_bias=raw.get("use_conv_bias", True),
        activation=raw.get("hidden_act", "silu"),
        norm_eps=raw["layer_norm_epsilon"],
        time_step_limit=limits(raw),
    )
    raw = {"tie_word_embeddings": False} | raw  # Mamba's default is the other one
    return recurrent_config(raw, NormConfig("rms", raw["layer_norm_epsilon"]), LayerConfig(mixer=mixer))


def limits(raw: dict[str, Any]) -> tuple[float, float]:
    """What time steps are clamped to. JSON has no infinity: transformers 5 writes ``{"__float__": "Infinity"}``."""
    low, high = raw.get("time_step_limit") or (0.0, float("inf"))
    return float(low), float(high["__float__"] if isinstance(high, dict) else high)


FAMILY = Family(model_types=("mamba2",), read_config=read_config, names=NAMES)
