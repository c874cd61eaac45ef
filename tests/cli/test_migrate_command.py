"""`wootz migrate` from start to rollback, on the database alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fresh_database import fresh_sqlite
from typer.testing import CliRunner, Result

from wootz.cli import app

CONFIG = """
[models.old]
base_url = "http://x/v1"
[models.new]
base_url = "http://x/v1"
[routes.chat]
targets = ["old"]
"""


@pytest.fixture
def wootz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WOOTZ_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wootz.toml").write_text(CONFIG)
    fresh_sqlite(tmp_path / "wootz.db")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["migrate", *arguments])

    return run


def test_there_and_back(wootz) -> None:
    assert "No migration is under way" in wootz("status").output
    started = wootz(
        "start", "--from", "chat", "--to", "new", "--stage", "canary=12h", "--allow", "cost=any",
        "--allow", "errors=0.1", "--min-samples", "7", "--json",
    )  # fmt: skip
    plan = json.loads(started.output)["plan"]
    assert (plan["durations"]["canary"], plan["min_samples"], plan["margins"]["errors"]) == (43200.0, 7, 0.1)
    assert "cost" not in plan["margins"]
    assert wootz("start", "--from", "chat", "--to", "new").exit_code == 2  # one at a time
    shown = wootz("status", "chat").output
    assert "chat → new" in shown
    assert "7 requests of each are needed" in shown
    refused = wootz("advance", "chat")
    assert refused.exit_code == 2
    assert wootz("advance", "chat", "--force").exit_code == 0
    assert wootz("rollback", "chat", "--why", "the drill").exit_code == 0
    assert wootz("rollback", "chat").exit_code == 2
    (listed,) = json.loads(wootz("list", "--json").output)
    assert (listed["stage"], listed["share"]) == ("rolled-back", 0)
    (told,) = json.loads(wootz("status", "chat", "--json").output)
    assert [step["stage"] for step in told["steps"]] == ["shadow", "canary", "rolled-back"]
    assert told["steps"][-1]["why"] == "the drill"


@pytest.mark.parametrize(
    "wrong",
    [["--from", "nothing", "--to", "new"], ["--from", "chat", "--to", "nothing"], ["--from", "old", "--to", "old"],
     ["--from", "old", "--to", "new", "--stage", "party=1h"],
     ["--from", "old", "--to", "new", "--stage", "canary=long"],
     ["--from", "old", "--to", "new", "--allow", "fun=1"], ["--from", "old", "--to", "new", "--allow", "cost=x"]],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(wootz, wrong: list[str]) -> None:
    result = wootz("start", *wrong)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
