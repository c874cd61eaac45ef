"""A run of `quantize` that was cut off goes on where it was, and its folder is the same to the last bit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from parity import save_random

from wootz.models.weight_quantization import whole_model
from wootz.models.weight_quantization.methods import METHODS
from wootz.models.weight_quantization.whole_model import quantize

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_random(folder / "dense", transformers.Qwen3Config(**SIZES))
    save_random(folder / "experts", transformers.Qwen3MoeConfig(**SIZES, **EXPERTS))
    return folder


def texts(seed: int = 0) -> list[list[int]]:
    return torch.randint(96, (4, 32), generator=torch.Generator().manual_seed(seed)).tolist()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def layers_computed(monkeypatch: pytest.MonkeyPatch, *arguments, stop_at: int | None = None, **settings) -> int:
    """By a run of `quantize`, which is cut off in one of them."""
    computed, original = [], whole_model._quantize_layer

    def watched(*layer):
        if len(computed) == stop_at:
            raise KeyboardInterrupt
        computed.append(layer)
        return original(*layer)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(whole_model, "_quantize_layer", watched)
        quantize(*arguments, **settings)
    return len(computed)


QUICK = {("dense", "gptq"), ("experts", "awq")}


@pytest.mark.parametrize(
    ("model", "method"),
    [
        pytest.param(model, method, marks=() if (model, method) in QUICK else pytest.mark.slow)
        for model, method in [*(("dense", method) for method in METHODS), ("experts", "awq"), ("experts", "gptq")]
    ],
)
def test_a_run_goes_on_at_the_layer_it_had_reached(
    model: str, method: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = models / model
    quantize(source, tmp_path / "at once", method, calibration=texts())
    run = source, tmp_path / "q", method
    assert layers_computed(monkeypatch, *run, calibration=texts(), stop_at=2) == 2
    assert not (tmp_path / "q").exists()
    assert layers_computed(monkeypatch, *run, calibration=texts()) == 1
    assert contents(tmp_path / "q") == contents(tmp_path / "at once")
    assert {path.name for path in tmp_path.iterdir()} == {"q", "at once"}


def test_another_run_begins_anew(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = models / "dense", tmp_path / "q"

    def after_two_layers(method: str, **settings) -> int:
        layers_computed(monkeypatch, *run, "gptq", calibration=texts(), stop_at=2, replace=True)
        return layers_computed(monkeypatch, *run, method, replace=True, **({"calibration": texts()} | settings))

    assert after_two_layers("gptq", calibration=texts(seed=1)) == 3
    assert after_two_layers("gptq", act_order=True) == 3
    assert after_two_layers("rtn4") == 3
    assert after_two_layers("gptq", group_size=32) == 1  # which is what rows of 64 and 96 are given


@pytest.mark.slow
def test_a_killed_process_leaves_its_layers(models: Path, tmp_path: Path) -> None:
    """SIGKILL: nothing could be tidied up."""
    slow = "import sys, time; from wootz.models.weight_quantization import whole_model as w; one = w._quantize_layer;"
    slow += "w._quantize_layer = lambda *a: (one(*a), time.sleep(0.5))[0];"
    slow += f"w.quantize({str(models / 'dense')!r}, {str(tmp_path / 'q')!r}, 'int8')"
    process = subprocess.Popen([sys.executable, "-c", slow])
    first = tmp_path / ".q.unfinished" / "layer-0.pt"
    while not first.exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert first.exists()
    assert not (tmp_path / "q").exists()
    quantize(models / "dense", tmp_path / "q", "int8")
    quantize(models / "dense", tmp_path / "at once", "int8")
    assert contents(tmp_path / "q") == contents(tmp_path / "at once")
