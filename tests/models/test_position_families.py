"""Families that tell places apart in other ways than by rotation: each equals its implementation in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from parity import prove, save_random
from safetensors.torch import load_file, save_file

from wootz.core.errors import ModelFileError
from wootz.models import load

SIZES = {"vocab_size": 97, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 0}
CASES = {
    "bloom": (transformers.BloomConfig, {"hidden_size": 48, "n_layer": 2, "n_head": 6, "seq_length": 128}),
    "mpt": (
        transformers.MptConfig,
        {"d_model": 48, "n_layers": 2, "n_heads": 3, "max_seq_len": 128, "attn_config": {"softmax_scale": 0.2}},
    ),
    "gpt2": (transformers.GPT2Config, {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt2-scaled-by-depth": (
        transformers.GPT2Config,
        {
            "n_embd": 48,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 128,
            "n_inner": 64,
            "scale_attn_by_inverse_layer_idx": True,
        },
    ),
}


SLOW = {"gpt2-scaled-by-depth", "mpt"}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_family_equals_transformers(tmp_path: Path, case: str) -> None:
    config_class, settings = CASES[case]
    prove(tmp_path, config_class(**(SIZES | settings)))


def test_names_without_their_prefix_are_read_too(tmp_path: Path) -> None:
    """As in the first published checkpoints of GPT-2 and BLOOM."""
    config_class, settings = CASES["gpt2"]
    reference = save_random(tmp_path, config_class(**(SIZES | settings)))
    file = tmp_path / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(bare | {"h.0.attn.bias": torch.ones(1, 1, 8, 8)}, file)
    tokens = torch.arange(20)
    torch.testing.assert_close(load(tmp_path).logits(tokens), reference(tokens[None]).logits[0], atol=1e-4, rtol=0)


def test_what_mpt_may_do_and_we_do_not_is_refused(tmp_path: Path) -> None:
    config_class, settings = CASES["mpt"]
    save_random(tmp_path, config_class(**(SIZES | settings | {"attn_config": {"clip_qkv": 6.0}})))
    with pytest.raises(ModelFileError, match="clip_qkv is not supported"):
        load(tmp_path)
