"""Each family with experts equals its implementation in transformers: see `parity.prove`."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from parity import prove
from test_families import SIZES

MOE = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
CASES = {
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 4, "intermediate_size": 24}),
    "qwen3-moe": (
        transformers.Qwen3MoeConfig,
        MOE | {"num_experts": 5, "head_dim": 16, "norm_topk_prob": True, "mlp_only_layers": [0]},
    ),
    "qwen2-moe": (transformers.Qwen2MoeConfig, MOE | {"num_experts": 4, "shared_expert_intermediate_size": 20}),
}


@pytest.mark.parametrize("case", CASES)
def test_family_equals_transformers(tmp_path: Path, case: str) -> None:
    config_class, settings = CASES[case]
    prove(tmp_path, config_class(**(SIZES | settings)))
