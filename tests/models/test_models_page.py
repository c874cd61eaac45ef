"""The examples of docs/models.md run, top to bottom, as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.real
def test_examples_run(smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(smollm2_gguf.parent)
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(examples) == 4
    exec("\n".join(examples), {})
    assert capsys.readouterr().out == "tensor(7042)\n"  # " Paris"
