"""The examples of ``docs/surfaces.md`` run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from serving import GatewayServer, ScriptedModel

PAGE = Path(__file__).parents[2] / "docs" / "surfaces.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["responses", "messages", "batches"])
def test_an_example_runs(
    server: GatewayServer, model: ScriptedModel, capsys: pytest.CaptureFixture[str], example: str
) -> None:
    real = {"http://127.0.0.1:8080": server.url, "sk-wootz-…": server.key, "smollm2-135m-instruct": "scripted"}
    for shown, meant in real.items():
        assert shown in example
        example = example.replace(shown, meant)
    exec(compile(example, str(PAGE), "exec"), {})
    assert "Hello, wörld" in capsys.readouterr().out
