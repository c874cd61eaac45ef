"""RWKV-4, as transformers has it (`RwkvForCausalLM`).

``rescale_every`` halves weights and stream as depth grows, so that float16 does not overflow. The norms undo it; we
compute in float32 or bfloat16, and leave it out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.rwkv4 import RWKV4ChannelMixConfig, RWKV4Config
from wootz.models.decoder import DecoderConfig, LayerConfig
from wootz.models.families.family import Family, View, refuse_unless
from wootz.models.families.mamba import recurrent_config


def per_channel(theirs: str) -> View:
    """They keep one number per channel as ``(1, 1, D)``."""

    def view(tensor: Tensor, layer: int) -> dict[str, Tensor]:
        return {theirs.replace("{i}", str(layer)): tensor[None, None]}

    return view


BLOCK = "rwkv.blocks.{i}"
NAMES = {
    "embedding": "rwkv.embeddings",
    "embedding_norm": "rwkv.blocks.0.pre_ln",
    "norm": "rwkv.ln_out",
    "head": "head",
    "layers.{i}.mixer_norm": f"{BLOCK}.ln1",
    "layers.{i}.mixer.decay": f"{BLOCK}.attention.time_decay",
    "layers.{i}.mixer.bonus": f"{BLOCK}.attention.time_first",
    **{f"layers.{{i}}.mixer.{part}": f"{BLOCK}.attention.{part}" for part in ("key", "value", "receptance")},
    **{
        f"layers.{{i}}.mixer.mix_{part}": per_channel(f"{BLOCK}.attention.time_mix_{part}")
        for part in ("key", "value", "receptance")
    },
    "layers.{i}.mixer.out_proj": f"{BLOCK}.attention.output",
    "layers.{i}.ffn_norm": f"{BLOCK}.ln2",
    **{f"layers.{{i}}.ffn.{part}": f"{BLOCK}.feed_forward.{part}" for part in ("key", "value", "receptance")},
    **{
        f"layers.{{i}}.ffn.mix_{part}": per_channel(f"{BLOCK}.feed_forward.time_mix_{part}")
        for part in ("key", "receptance")
    },
}


def read_config(raw: dict[str, Any]) -> DecoderConfig:
    size, eps = raw["hidden_size"], raw.get("layer_norm_epsilon", 1e-5)
    refuse_unless(eps == 1e-5, f"layer_norm_epsilon {eps} is not supported: the last norm's is always 1e-5")
    layer = LayerConfig(
        mixer=RWKV4Config(raw.get("attention_hidden_size") or size),
        ffn=RWKV4ChannelMixConfig(raw.get("intermediate_size") or 4 * size),
    )
    # No state grows, so the length that it was trained with does not bound the length that it can run.
    raw = {"tie_word_embeddings": False} | raw
    return recurrent_config(raw, NormConfig("layer", eps), layer, embedding_norm=True)


FAMILY = Family(model_types=("rwkv",), read_config=read_config, names=NAMES)
