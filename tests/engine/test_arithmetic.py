"""An engine says how it computes: what is said follows what its modules hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from packed_model import packed_model

from wootz import kernels
from wootz.engine.arithmetic import arithmetic_of
from wootz.engine.kv_store import CacheFormat
from wootz.models import load
from wootz.models.weight_quantization.whole_model import quantize


@pytest.mark.parametrize(
    ("method", "kept", "cache", "said"),
    [
        (None, False, torch.float32, "float32"),
        (None, False, "int4", "float32+int4-cache"),
        ("int8", False, torch.float32, "float32"),  # dequantised once: the dense twin's own numbers
        ("int8", "exact", torch.float16, "float32+quantized"),
        ("fp8", "exact", torch.float32, "float32+rounded"),
    ],
)
def test_what_is_held_is_said(
    tiny_folder: Path, tmp_path: Path, method: str | None, kept, cache: CacheFormat, said: str
) -> None:
    folder = tiny_folder
    if method is not None:
        quantize(tiny_folder, folder := tmp_path / method, method)
    model = load(folder, keep_quantized=kept) if kept else load(folder)
    assert arithmetic_of(model, model.dtype, cache) == said


def test_a_model_in_other_processes_is_not_vouched_for() -> None:
    assert arithmetic_of(object(), torch.float32, torch.float32) is None


@pytest.mark.skipif(not kernels.AVAILABLE, reason="installed without a C++ compiler")
def test_packed_weights_meet_rounded_inputs() -> None:
    assert arithmetic_of(packed_model("llama"), torch.float32, torch.float16) == "float32+rounded"
