"""Cohere 2 (Command R7B, Command A, Aya): both parts of a layer read one norm and are added together; three windowed
layers with rotary positions, then one that sees everything and is told no positions at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families import llama
from wootz.models.families.family import Family, windows


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    norm = NormConfig("layer", raw["layer_norm_eps"], bias=False)
    ffn = GatedMLPConfig(raw["intermediate_size"], raw.get("hidden_act", "silu"))
    period, numbers = raw.get("sliding_window_pattern", 4), range(1, raw["num_hidden_layers"] + 1)
    types = [("sliding_attention" if number % period else "full_attention") for number in numbers]
    layers = []
    for mixer, window in zip(llama.attentions(raw, norm), windows({"layer_types": types} | raw), strict=True):
        rotary = replace(mixer.rotary, interleaved=True) if mixer.rotary and window else None
        layers.append(LayerConfig(mixer=replace(mixer, rotary=rotary, window=window), ffn=ffn, parallel=True))
    tied = {"tie_word_embeddings": True} | raw
    return llama.decoder_config(tied, norm, layers, logit_scale=raw.get("logit_scale", 0.0625))


FAMILY = Family(model_types=("cohere2",), read_config=read_config, names=llama.NAMES)
