"""The page's example of a plan runs, and says what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_pages_plan_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(next(example for example in examples if "state_bytes" in example), {})
    state, activations, gathered = capsys.readouterr().out.splitlines()
    assert state == "8.75 + 8.75 + 8.75 + 4.38 GB"
    assert activations.endswith("GB of activations")
    assert gathered == "139 GB gathered in one step"
