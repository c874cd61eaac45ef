"""The examples of docs/checkpoints.md run, top to bottom, as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"


@pytest.mark.real
@pytest.mark.slow
def test_checkpoint_examples_run(
    tmp_path: Path, smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / smollm2_gguf.name).symlink_to(smollm2_gguf)
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(examples) == 3
    exec("\n".join(examples), {})
    assert capsys.readouterr().out == "none 16.0\nint8 8.0\n"
