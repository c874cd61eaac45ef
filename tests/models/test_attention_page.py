"""The examples of docs/attention.md run, top to bottom, as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "attention.md"


@pytest.mark.slow
def test_examples_run(smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(smollm2_gguf.parent)
    torch.manual_seed(0)
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(examples) == 6
    exec("\n".join(examples), {})
    ratio, kivi, sinks, massive, launches = capsys.readouterr().out.splitlines()
    assert 2.5 < float(ratio) < 3.5
    assert kivi.startswith("864 ")
    assert re.fullmatch(r"\d+ of 270 heads look at the first token", sinks)
    assert "token=0" in massive
    assert launches.endswith("operators per layer and token")
