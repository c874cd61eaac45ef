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
CASES = {
    "mamba": (transformers.MambaConfig, MAMBA),
    "mamba-biases": (transformers.MambaConfig, MAMBA | {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3}),
    "falcon-mamba": (transformers.FalconMambaConfig, MAMBA),
    "mamba2": (transformers.Mamba2Config, MAMBA2),
    "mamba2-limited": (transformers.Mamba2Config, MAMBA2 | {"time_step_limit": (0.05, 0.4), "use_bias": True}),
}
RWKV = {"intermediate_size": 40, "use_cache": False}


@pytest.mark.parametrize("case", CASES)
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
