"""How llama.cpp keeps each kind of model: what it calls the weights, and which it cuts, stacks or turns another way.

One entry of `ARCHITECTURES` per family, read in both directions: `wootz.models.gguf` makes Hugging Face tensors of a
file's, `wootz.models.gguf_export` a file's of Hugging Face ones. In patterns ``{i}`` is the layer's number and ``{e}``
the expert's. What the metadata says is in `wootz.models.gguf_config`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Raw = Mapping[str, Any]
"""A config in Hugging Face layout."""


@dataclass(frozen=True)
class Made:
    """One tensor of a Hugging Face checkpoint that is made of one or several in the file, and the way back."""

    theirs: tuple[str, ...]
    ours: str
    join: Callable[..., Tensor] = lambda raw, only: only
    """``(raw, *theirs)``."""
    split: Callable[[Raw, Tensor], tuple[Tensor, ...]] = lambda raw, whole: (whole,)


@dataclass(frozen=True)
class Architecture:
    gguf: str
    """``general.architecture``."""
    names: Mapping[str, str]
    """Their modules to those of a Hugging Face checkpoint."""
    experts: Mapping[str, str] = field(default_factory=dict)
    """Their tensors of all experts ``(E, …)`` to ours of one."""
    made: tuple[Made, ...] = ()
    """Comes before ``names``."""
    interleaved: bool = False
    """Queries and keys are in the order in which neighbouring dimensions turn together."""
    norm_offset: float = 0.0
    """Norm weights are written with this added."""


_OURS = "model.layers.{i}"

_PLAIN = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{i}.attn_norm": f"{_OURS}.input_layernorm",
    "blk.{i}.attn_q": f"{_OURS}.self_attn.q_proj",
    "blk.{i}.attn_k": f"{_OURS}.self_attn.k_proj",
    "blk.{i}.attn_v": f"{_OURS}.self_attn.v_proj",
    "blk.{i}.attn_q_norm": f"{_OURS}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": f"{_OURS}.self_attn.k_norm",
    "blk.{i}.attn_output": f"{_OURS}.self_attn.o_proj",
    "blk.{i}.ffn_norm": f"{_OURS}.post_attention_layernorm",
    "blk.{i}.ffn_gate": f"{_OURS}.mlp.gate_proj",
    "blk.{i}.ffn_up": f"{_OURS}.mlp.up_proj",
    "blk.{i}.ffn_down": f"{_OURS}.mlp.down_proj",
}
_OUTPUT_NORMS = {
    "blk.{i}.post_attention_norm": f"{_OURS}.post_attention_layernorm",
    "blk.{i}.post_ffw_norm": f"{_OURS}.post_feedforward_layernorm",
}
_SANDWICH = _OUTPUT_NORMS | {"blk.{i}.ffn_norm": f"{_OURS}.pre_feedforward_layernorm"}
_FUSED = {"blk.{i}.attn_qkv": f"{_OURS}.self_attn.qkv_proj", "blk.{i}.ffn_up": f"{_OURS}.mlp.gate_up_proj"}
_ROUTER = {"blk.{i}.ffn_gate_inp": f"{_OURS}.mlp.gate"}
_LATENT = {
    "blk.{i}.attn_q_a": f"{_OURS}.self_attn.q_a_proj",
    "blk.{i}.attn_q_a_norm": f"{_OURS}.self_attn.q_a_layernorm",
    "blk.{i}.attn_q_b": f"{_OURS}.self_attn.q_b_proj",
    "blk.{i}.attn_kv_a_mqa": f"{_OURS}.self_attn.kv_a_proj_with_mqa",
    "blk.{i}.attn_kv_a_norm": f"{_OURS}.self_attn.kv_a_layernorm",
    "blk.{i}.attn_kv_b": f"{_OURS}.self_attn.kv_b_proj",  # files from before the absorbed form
}


def _experts(module: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> dict[str, str]:
    each = {"gate": gate, "up": up, "down": down}
    return {f"blk.{{i}}.ffn_{kind}_exps.weight": f"{module}.experts.{{e}}.{ours}.weight" for kind, ours in each.items()}


def _shared(module: str) -> dict[str, str]:
    return {f"blk.{{i}}.ffn_{kind}_shexp": f"{module}.{kind}_proj" for kind in ("gate", "up", "down")}


def _split_latent(raw: Raw, kv_up: Tensor) -> tuple[Tensor, Tensor]:
    """Keys' rows ``(H, r, p)``, transposed for the absorbed form, and values' ``(H, e, r)``."""
    by_head = kv_up.unflatten(0, (raw["num_attention_heads"], -1))
    keys, values = by_head.split((raw["qk_nope_head_dim"], raw["v_head_dim"]), dim=1)
    return keys.transpose(1, 2), values


def _join_latent(raw: Raw, keys: Tensor, values: Tensor) -> Tensor:
    return torch.cat((keys.transpose(1, 2), values), dim=1).flatten(0, 1)


_LATENT_UP = Made(
    ("blk.{i}.attn_k_b.weight", "blk.{i}.attn_v_b.weight"),
    f"{_OURS}.self_attn.kv_b_proj.weight",
    _join_latent,
    _split_latent,
)
_BALANCE_BIAS = Made(("blk.{i}.exp_probs_b.bias",), f"{_OURS}.mlp.gate.e_score_correction_bias")
_SHARED_GATE = Made(  # one row, which they keep as a vector
    ("blk.{i}.ffn_gate_inp_shexp.weight",),
    f"{_OURS}.mlp.shared_expert_gate.weight",
    lambda raw, row: row.view(1, -1),
    lambda raw, row: (row.flatten(),),
)
_ALTERNATING = (  # gpt-oss: gate and up by turns, and (in, out) where they have (out, in)
    Made(
        ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_up_exps.weight"),
        f"{_OURS}.mlp.experts.gate_up_proj",
        lambda raw, gate, up: torch.stack((gate, up), 2).flatten(1, 2).transpose(1, 2),
        lambda raw, both: both.transpose(1, 2).unflatten(1, (-1, 2)).unbind(2),
    ),
    Made(
        ("blk.{i}.ffn_gate_exps.bias", "blk.{i}.ffn_up_exps.bias"),
        f"{_OURS}.mlp.experts.gate_up_proj_bias",
        lambda raw, gate, up: torch.stack((gate, up), 2).flatten(1, 2),
        lambda raw, both: both.unflatten(1, (-1, 2)).unbind(2),
    ),
    Made(
        ("blk.{i}.ffn_down_exps.weight",),
        f"{_OURS}.mlp.experts.down_proj",
        lambda raw, down: down.transpose(1, 2),
        lambda raw, down: (down.transpose(1, 2),),
    ),
    Made(("blk.{i}.ffn_down_exps.bias",), f"{_OURS}.mlp.experts.down_proj_bias"),
    Made(("blk.{i}.attn_sinks.weight",), f"{_OURS}.self_attn.sinks"),
)

_SSM = "backbone.layers.{i}.mixer"
_MAMBA = {
    "token_embd": "backbone.embeddings",
    "output_norm": "backbone.norm_f",
    "output": "lm_head",
    "blk.{i}.attn_norm": "backbone.layers.{i}.norm",
    "blk.{i}.ssm_in": f"{_SSM}.in_proj",
    "blk.{i}.ssm_conv1d": f"{_SSM}.conv1d",
    "blk.{i}.ssm_x": f"{_SSM}.x_proj",
    "blk.{i}.ssm_dt": f"{_SSM}.dt_proj",
    "blk.{i}.ssm_out": f"{_SSM}.out_proj",
}
_CONV = Made(
    ("blk.{i}.ssm_conv1d.weight",),
    f"{_SSM}.conv1d.weight",
    lambda raw, taps: taps.unsqueeze(1),
    lambda raw, taps: (taps.squeeze(1),),
)
_MAMBA_MADE = (
    _CONV,
    Made(("blk.{i}.ssm_a",), f"{_SSM}.A_log", lambda raw, a: (-a).log(), lambda raw, log: (-log.exp(),)),
    Made(("blk.{i}.ssm_d",), f"{_SSM}.D"),
)
_MAMBA2_MADE = (  # a number per head is a column there, and the norm's weights are by group
    _CONV,
    Made(
        ("blk.{i}.ssm_a",),
        f"{_SSM}.A_log",
        lambda raw, a: (-a).log().flatten(),
        lambda raw, log: (-log.exp().unsqueeze(1),),
    ),
    Made(("blk.{i}.ssm_d",), f"{_SSM}.D", lambda raw, d: d.flatten(), lambda raw, d: (d.unsqueeze(1),)),
    Made(("blk.{i}.ssm_dt.bias",), f"{_SSM}.dt_bias"),
    Made(
        ("blk.{i}.ssm_norm.weight",),
        f"{_SSM}.norm.weight",
        lambda raw, norm: norm.flatten(),
        lambda raw, norm: (norm.unflatten(0, (raw["n_groups"], -1)),),
    ),
)

_MLP, _DEEPSEEK = f"{_OURS}.mlp", _PLAIN | _LATENT | _ROUTER | _shared(f"{_OURS}.mlp.shared_experts")

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", _PLAIN, interleaved=True),
    "mixtral": Architecture(
        "llama",
        _PLAIN | {"blk.{i}.ffn_gate_inp": f"{_OURS}.block_sparse_moe.gate"},
        _experts(f"{_OURS}.block_sparse_moe", "w1", "w3", "w2"),
        interleaved=True,
    ),
    "qwen2": Architecture("qwen2", _PLAIN),
    "qwen3": Architecture("qwen3", _PLAIN),
    "qwen2_moe": Architecture(
        "qwen2moe", _PLAIN | _ROUTER | _shared(f"{_MLP}.shared_expert"), _experts(_MLP), (_SHARED_GATE,)
    ),
    "qwen3_moe": Architecture("qwen3moe", _PLAIN | _ROUTER, _experts(_MLP)),
    "gemma2": Architecture("gemma2", _PLAIN | _SANDWICH, norm_offset=1.0),
    "gemma3_text": Architecture("gemma3", _PLAIN | _SANDWICH, norm_offset=1.0),
    "phi3": Architecture("phi3", _PLAIN | _FUSED),
    "olmo2": Architecture("olmo2", {k: v for k, v in _PLAIN.items() if k != "blk.{i}.ffn_norm"} | _OUTPUT_NORMS),
    "olmoe": Architecture("olmoe", _PLAIN | _ROUTER, _experts(_MLP)),
    "cohere2": Architecture("cohere2", _PLAIN),
    "deepseek_v2": Architecture("deepseek2", _DEEPSEEK, _experts(_MLP), (_LATENT_UP,)),
    "deepseek_v3": Architecture("deepseek2", _DEEPSEEK, _experts(_MLP), (_LATENT_UP, _BALANCE_BIAS)),
    "gpt_oss": Architecture(
        "gpt-oss",
        {k: v for k, v in _PLAIN.items() if "ffn" not in k}
        | {"blk.{i}.post_attention_norm": f"{_OURS}.post_attention_layernorm"}
        | {"blk.{i}.ffn_gate_inp": f"{_MLP}.router"},
        made=_ALTERNATING,
    ),
    "mamba": Architecture("mamba", _MAMBA, made=_MAMBA_MADE),
    "falcon_mamba": Architecture("mamba", _MAMBA, made=_MAMBA_MADE),
    "mamba2": Architecture("mamba2", _MAMBA, made=_MAMBA2_MADE),
}
"""By ``model_type`` of a Hugging Face config."""

ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Factors of rotary frequencies, which are no weights but part of the config."""
