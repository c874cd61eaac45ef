"""The examples of docs/positions.md and docs/encoders.md run, top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from minilm import minilm_folder

DOCS = Path(__file__).parents[2] / "docs"


def run(page: str) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    assert examples
    exec("\n".join(examples), {})


def test_positions(capsys: pytest.CaptureFixture[str]) -> None:
    run("positions.md")
    first, broken, extended = capsys.readouterr().out.splitlines()
    assert first == "54410 46"
    assert broken.startswith("{'none': 18, 'linear': 0,")
    assert extended == "32768 4096"


@pytest.mark.real
def test_encoders(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(minilm_folder().parent)
    run("encoders.md")
    nearest, *kinds = capsys.readouterr().out.splitlines()
    assert nearest == "[0, 1, 2]"
    assert kinds == ["decoder Decoder", "encoder Encoder", "encoder-decoder EncoderDecoder"]
