"""Zamba 2: Mamba-2 throughout, and one or two transformer blocks that many depths share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.mamba2 import Mamba2Config
from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.shared_block import SharedBlock, SharedBlockConfig, share
from wootz.models.decoder import Decoder, DecoderConfig, LayerConfig
from wootz.models.families import bamba, mamba2
from wootz.models.families.family import Family, end_tokens, rope_parameters, rope_scaling
from wootz.models.positions.rotary import RotaryConfig

OURS, LAYER = "layers.{i}.mixer", "model.layers.{i}"
SHARED, BLOCK = f"{OURS}.shared", f"{LAYER}.shared_transformer"
MOST_DEPTHS = 64
"""A checkpoint numbers adapters by the depth that has them; the largest model has 13."""

NAMES: dict[str, str | tuple[str, ...]] = {
    "embedding": "model.embed_tokens",
    "norm": "model.final_layernorm",
    "head": "lm_head",
    "layers.{i}.mixer_norm": f"{LAYER}.input_layernorm",
    **bamba.MAMBA2_NAMES,
    **{
        ours.replace("mixer.", "mixer.mamba."): f"{LAYER}.mamba_decoder.mamba.{theirs}"
        for ours, theirs in mamba2.MIXER.items()
    },
    f"{OURS}.mamba_norm": f"{LAYER}.mamba_decoder.input_layernorm",
    f"{OURS}.linear": f"{LAYER}.linear",
    f"{SHARED}.block_norm": f"{BLOCK}.input_layernorm",
    f"{SHARED}.qkv.linear": tuple(f"{BLOCK}.self_attn.{part}_proj" for part in "qkv"),
    f"{SHARED}.output": f"{BLOCK}.self_attn.o_proj",
    f"{SHARED}.ffn_norm": f"{BLOCK}.pre_ff_layernorm",
    f"{SHARED}.gate_up.linear": f"{BLOCK}.feed_forward.gate_up_proj",
    f"{SHARED}.down": f"{BLOCK}.feed_forward.down_proj",
}
for _depth in range(MOST_DEPTHS):
    _qkv = [f"{BLOCK}.self_attn.linear_{part}_adapter_list.{_depth}" for part in "qkv"]
    _gate_up = f"{BLOCK}.feed_forward.gate_up_proj_adapter_list.{_depth}"
    NAMES[f"{SHARED}.qkv.adapters.{_depth}.down"] = tuple(f"{adapter}.0" for adapter in _qkv)
    NAMES |= {f"{SHARED}.qkv.adapters.{_depth}.up.{part}": f"{adapter}.1" for part, adapter in enumerate(_qkv)}
    NAMES[f"{SHARED}.gate_up.adapters.{_depth}.down"] = f"{_gate_up}.0"
    NAMES[f"{SHARED}.gate_up.adapters.{_depth}.up.0"] = f"{_gate_up}.1"


@dataclass(frozen=True, kw_only=True)
class Zamba2Config(DecoderConfig):
    num_blocks: int
    """How many transformer blocks there are to share; depths take turns."""

    def build(self) -> Decoder:
        model = Decoder(self)
        share([layer.mixer for layer in model.layers if isinstance(layer.mixer, SharedBlock)], self.num_blocks)
        model.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        return model


def read_config(raw: dict[str, Any]) -> Zamba2Config:
    size, norm, rope = raw["hidden_size"], NormConfig("rms", raw["rms_norm_eps"]), rope_parameters(raw)
    num_heads, bias = raw["num_attention_heads"], raw.get("add_bias_linear", False)
    head_dim = 2 * size // num_heads
    attention = AttentionConfig(
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        rotary=RotaryConfig(head_dim, rope["rope_theta"], rope_scaling(rope)) if raw.get("use_mem_rope") else None,
        scale=(head_dim / 2) ** -0.5,
    )
    mamba = Mamba2Config(
        num_heads=raw["n_mamba_heads"],
        head_dim=raw["mamba_expand"] * size // raw["n_mamba_heads"],
        state_size=raw["mamba_d_state"],
        num_groups=raw["mamba_ngroups"],
        conv_width=raw["mamba_d_conv"],
        bias=bias,
        norm_eps=1e-5,  # whatever rms_norm_eps is
        time_step_limit=(raw.get("time_step_min", 0.001), float("inf")),
    )
    block = SharedBlockConfig(
        attention=attention,
        ffn=GatedMLPConfig(raw["intermediate_size"], raw.get("hidden_act", "gelu"), bias=bias),
        mamba=mamba,
        norm=norm,
        adapter_rank=raw["adapter_rank"],
        attention_adapters=raw.get("use_shared_attention_adapter", False),
    )
    layers = {"hybrid": LayerConfig(mixer=block, norms="none")}
    return Zamba2Config(
        family="zamba2",
        vocab_size=raw["vocab_size"],
        hidden_size=size,
        layers=tuple(layers.get(kind, LayerConfig(mixer=mamba)) for kind in raw["layers_block_type"]),
        num_blocks=raw.get("num_mem_blocks", 1),
        norm=norm,
        max_position_embeddings=raw["max_position_embeddings"],
        tie_embeddings=raw.get("tie_word_embeddings", True),
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=end_tokens(raw),
        raw=raw,
    )


FAMILY = Family(model_types=("zamba2",), read_config=read_config, names=NAMES)
