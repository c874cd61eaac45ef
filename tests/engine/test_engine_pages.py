"""The examples of the engine's pages run, top to bottom, as a reader would run them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import transformers

from wootz.engine import Engine, SamplingParams
from wootz.models.weight_quantization.whole_model import quantize

DOCS = Path(__file__).parents[2] / "docs"


def examples(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., list[str]]:
    """Run some examples in one namespace, in an empty folder; the lines they print."""
    monkeypatch.chdir(tmp_path)

    def run(*codes: str, **names: Any) -> list[str]:
        exec("\n".join(codes), names)
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def real_file(smollm2_gguf: Path, run, tmp_path: Path) -> None:
    (tmp_path / smollm2_gguf.name).symlink_to(smollm2_gguf)


@pytest.mark.usefixtures("real_file")
def test_engine(run, tmp_path: Path, tiny_folder: Path) -> None:
    generate, beams, watermark, steps, sleep = examples("engine.md")
    *answers, beam, z_score = run(generate, beams, watermark, steps)
    assert sum(" length 3 0" in line for line in answers) == 1  # "The sea is": three tokens, none of them cached
    assert re.fullmatch(r"\[\(-\d.*\), \(-\d.*\)\]", beam)
    assert float(z_score) > 4
    shutil.copytree(tiny_folder, tmp_path / "runs/sft/checkpoint-500")
    engine = Engine(tiny_folder)
    before = engine.generate(["the"], SamplingParams(temperature=0))[0].token_ids
    pairs = [("model.norm.weight", engine.model.norm.weight.detach().clone())]
    run(sleep, engine=engine, pairs=pairs, Path=Path)
    assert engine.generate(["the"], SamplingParams(temperature=0))[0].token_ids == before


@pytest.mark.slow
@pytest.mark.usefixtures("real_file")
def test_logprobs(run) -> None:
    *tokens, sums = run(*examples("logprobs.md"))
    assert len(tokens) == 20
    france, spain = json.loads(sums)
    assert spain < france < 0


@pytest.mark.usefixtures("real_file")
def test_speculation(run) -> None:
    lookup, _ = examples("speculation.md")  # the other's heads: tests/models/test_draft_heads.py
    (counts,) = run(lookup)
    drafts, tokens, accepted = map(int, counts.split())
    assert tokens >= drafts > 0
    assert accepted > 0


def test_structured_output(run, smollm2_gguf: Path) -> None:
    _, choice = examples("structured-output.md")  # the other asks a server: tests/gateway/test_openai_clients.py
    assert run(choice, "print(answer.text)", path=smollm2_gguf) in (["yes"], ["no"])


def test_adapters(run, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, "models/smollm2")
    for name in ("sql", "support"):
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
        peft.get_peft_model(base, peft.LoraConfig(r=2, init_lora_weights=False)).save_pretrained(f"adapters/{name}")
    serve, study = examples("adapters.md")
    rows, length = run(serve, study, "print(len(logits_TV), len(answers[1].token_ids), sep='\\n')", token_ids=[1, 5])
    assert int(rows) == 2
    assert 0 < int(length) <= 32


def test_quantization(run, tiny_folder: Path) -> None:
    quantize(tiny_folder, Path("smollm2-awq"), "awq", calibration=[[1, 5, 7, 9] * 8])
    (example,) = examples("quantization.md")
    assert run(example, "print(dense.logits([1, 2]).shape == model.logits([1, 2]).shape)") == ["True"]
