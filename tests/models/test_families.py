"""Each family equals its implementation in transformers: see `parity.prove`."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from parity import prove

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 0,
}
CASES = {
    "llama": (transformers.LlamaConfig, {}),
    "mistral-windowed": (transformers.MistralConfig, {"sliding_window": 10}),
    "qwen3-windowed": (
        transformers.Qwen3Config,
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_family_equals_transformers(tmp_path: Path, case: str) -> None:
    config_class, settings = CASES[case]
    prove(tmp_path, config_class(**(SIZES | settings)))
