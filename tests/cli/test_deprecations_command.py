"""`wootz models deprecations`: as a table, JSON and a calendar."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wootz.cli.main import app


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WOOTZ_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wootz.toml").write_text('[models.gpt-4]\nbase_url = "https://api.openai.com/v1"\n')
    run = CliRunner().invoke
    shown = run(app, ["models", "deprecations"])
    assert "2026-10-23" in shown.output
    assert "gone" in shown.output
    assert run(app, ["models", "deprecations", "--within", "30"]).exit_code == 1
    assert json.loads(run(app, ["models", "deprecations", "--json"]).output)["models"][0]["model"] == "gpt-4"
    assert run(app, ["models", "deprecations", "--ics"]).output.startswith("BEGIN:VCALENDAR")
    assert "gemini-2.5-pro" in run(app, ["models", "deprecations", "--all"]).output
