"""Recurrent and hybrid families equal their implementations in transformers: see `parity.prove`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from parity import prove, prove_engine, prove_logits, save_random

from wootz.models import Decoder, load

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 0,
}
MAMBA = {"state_size": 5, "time_step_rank": 3}
MAMBA2 = {"num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 5, "chunk_size": 8}
ATTENTION = {"intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
HYBRID = ATTENTION | {"mamba_d_state": 5}
HEADS = HYBRID | {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2}
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
JAMBA = HYBRID | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 3}
GRANITE = HEADS | MIXED | {"shared_intermediate_size": 24}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.3,
}
ZAMBA = HYBRID | {
    "num_hidden_layers": 5,
    "layers_block_type": ["linear_attention", "hybrid", "hybrid", "linear_attention", "hybrid"],
    "num_key_value_heads": 4,
    "n_mamba_heads": 8,
    "mamba_ngroups": 2,
    "adapter_rank": 3,
    "tie_word_embeddings": True,
}
CASES = {
    "mamba": (transformers.MambaConfig, MAMBA),
    "mamba-biases": (transformers.MambaConfig, MAMBA | {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3}),
    "falcon-mamba": (transformers.FalconMambaConfig, MAMBA),
    "mamba2": (transformers.Mamba2Config, MAMBA2),
    "jamba-dense": (transformers.JambaConfig, JAMBA | {"num_experts": 1}),
    "jamba": (transformers.JambaConfig, JAMBA | {"num_experts": 4, "num_experts_per_tok": 2}),
    "bamba": (transformers.BambaConfig, HEADS | {"attn_layer_indices": [1]}),
    "granite-dense": (
        transformers.GraniteMoeHybridConfig,
        GRANITE | MULTIPLIERS | {"num_local_experts": 0, "position_embedding_type": "rope"},
    ),
    "granite": (transformers.GraniteMoeHybridConfig, GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "zamba2": (
        transformers.Zamba2Config,
        ZAMBA | {"num_mem_blocks": 2, "use_shared_attention_adapter": True, "use_mem_rope": True},
    ),
    "zamba2-one-block": (transformers.Zamba2Config, ZAMBA | {"num_key_value_heads": 2}),
    "lfm2": (
        transformers.Lfm2Config,
        ATTENTION | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8, "tie_word_embeddings": True},
    ),
    "mamba2-limited": (transformers.Mamba2Config, MAMBA2 | {"time_step_limit": (0.05, 0.4), "use_bias": True}),
}
RWKV = {"intermediate_size": 40, "use_cache": False}


SLOW = {
    "bamba",
    "granite",
    "falcon-mamba",
    "mamba-biases",
    "mamba2-limited",
    "jamba-dense",
    "granite-dense",
    "zamba2",
    "zamba2-one-block",
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_family_equals_transformers(tmp_path: Path, case: str) -> None:
    config_class, settings = CASES[case]
    prove(tmp_path, config_class(**(SIZES | settings)))


def test_rwkv4_equals_transformers(tmp_path: Path) -> None:
    prove(tmp_path, transformers.RwkvConfig(**(SIZES | RWKV)), engine=False)
    prove_engine(short(load(tmp_path / "model", dtype="float64")))


def test_rwkv4_does_not_need_the_rescaling_that_float16_needs(tmp_path: Path) -> None:
    """In transformers, each layer's weights and the stream behind it are halved once more."""
    config = transformers.RwkvConfig(**(SIZES | RWKV | {"rescale_every": 1, "num_hidden_layers": 4}))
    reference = save_random(tmp_path, config)
    reference.rwkv.blocks[0].pre_ln.weight.data *= 30  # a stream beside which the norms' epsilon is nothing
    reference.save_pretrained(tmp_path)
    prove_logits(load(tmp_path), reference, torch.arange(45), atol=1e-4)


def short(model: Decoder) -> Decoder:
    """A model that could run forever, with fewer blocks to check the books of."""
    model.config = replace(model.config, max_position_embeddings=64)
    return model
