"""What checkpoints call our weights, in both directions, in one place.

A checkpoint in Hugging Face layout holds one tensor per projection; we keep queries, keys and values one below the
other in one `Linear`, and so gate and up. `checkpoint_views` gives the model's weights cut and named as the
checkpoint has them. They are views: copying into them loads a model, writing them to a file saves it.
"""

from __future__ import annotations

from torch import Tensor

from wootz.models.llama import Llama

_NAMES = {
    "embedding": ["model.embed_tokens"],
    "norm": ["model.norm"],
    "head": ["lm_head"],
    "attention_norm": ["input_layernorm"],
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.q_norm": ["self_attn.q_norm"],
    "attention.k_norm": ["self_attn.k_norm"],
    "attention.output": ["self_attn.o_proj"],
    "mlp_norm": ["post_attention_layernorm"],
    "mlp.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.down": ["mlp.down_proj"],
}


def checkpoint_pieces(model: Llama) -> dict[str, dict[str, Tensor]]:
    """Of each of the model's parameters, the views of its pieces under their checkpoint names, in order from the top.

    A tied head is not a parameter of its own.
    """
    config = model.config
    rows = {
        "attention.qkv": [heads * config.head_dim for heads in (config.num_heads, *[config.num_kv_heads] * 2)],
        "mlp.gate_up": [config.intermediate_size] * 2,
    }
    pieces = {}
    for name, parameter in model.named_parameters():
        prefix = ""
        module, _, leaf = name.rpartition(".")
        if module.startswith("layers."):
            _, index, module = module.split(".", 2)
            prefix = f"model.layers.{index}."
        views = parameter.detach().split(rows.get(module, len(parameter)))
        theirs = [f"{prefix}{their}.{leaf}" for their in _NAMES[module]]
        pieces[name] = dict(zip(theirs, views, strict=True))
    return pieces


def checkpoint_views(model: Llama) -> dict[str, Tensor]:
    """The model's weights under their checkpoint names, in order."""
    return {name: view for pieces in checkpoint_pieces(model).values() for name, view in pieces.items()}
