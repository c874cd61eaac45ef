"""The examples of docs/moe.md run, top to bottom, as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "moe.md"


def test_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(examples) == 3
    exec("\n".join(examples), {})
    parameters, report, *volumes = capsys.readouterr().out.splitlines()
    assert parameters == f"{64 * 16 + 17 * 3 * 64 * 32} parameters, {64 * 16 + 5 * 3 * 64 * 32} of them for one token"
    assert report.startswith("RoutingReport(load=(")
    plain, once = (int(volume.split()[0]) for volume in volumes)
    assert plain == round(4096 * 8 * 7168 * 63 / 64 * 3 / 2**20)
    assert 0.5 * plain < once < plain
