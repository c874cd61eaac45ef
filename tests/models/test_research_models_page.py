"""The examples of docs/research-models.md run, top to bottom, as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "research-models.md"


def test_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(examples) == 4
    exec("\n".join(examples), {})
    hello, drafts, *shapes, one, three, five = capsys.readouterr().out.splitlines()
    assert hello == "b'hello'"
    assert drafts == "torch.Size([3])"
    assert shapes == ["torch.Size([17, 259])"] * 2
    assert one == "1 0.375 0.375"
    assert float(five.split()[2]) > float(three.split()[2]) > 0.375
