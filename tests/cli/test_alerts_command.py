"""`wootz alerts`: what it prints and exits with; the rules file is Prometheus's."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from fresh_database import fresh_sqlite
from typer.testing import CliRunner

from wootz.cli.main import app
from wootz.store import Database
from wootz.telemetry.alerts import load_rules
from wootz.telemetry.metrics import Metrics
from wootz.telemetry.signals import Signals


@pytest.fixture
def home(tmp_path: Path) -> Path:
    fresh_sqlite(tmp_path / "wootz.db")
    return tmp_path


def wootz(home: Path, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["--home", str(home), "alerts", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


def note(home: Path, kind: str, **of: str) -> None:
    async def run() -> None:
        database = Database(f"sqlite+aiosqlite:///{home / 'wootz.db'}")
        await Signals(database, lambda: datetime.now(UTC) - timedelta(seconds=5)).note(kind, **of)
        await database.close()

    asyncio.run(run())


def test_looking_now_and_back(home: Path) -> None:
    assert "34 rules, 0 firing" in wootz(home, "check")
    assert "No incidents" in wootz(home, "list")
    note(home, "out_of_memory", subject="local")
    checked = wootz(home, "check", code=1)
    assert re.search(r"out-of-memory +local +1 +>= 1 +fires", checked)
    assert "1 incidents" in wootz(home, "replay", "--last", "1h", "--step", "1m", "--rule", "out-of-memory")
    assert "No incidents" in wootz(home, "list")


def test_drift_says_what_the_rule_says(home: Path) -> None:
    async def grade(days: int, value: float, number: int) -> None:
        database = Database(f"sqlite+aiosqlite:///{home / 'wootz.db'}")
        at = datetime.now(UTC) - timedelta(days=days, hours=1)
        rows = [{"kind": "quality", "value": value + n % 5 / 100, "at": at, "model": "m"} for n in range(number)]
        await Signals(database).note_all([row | {"subject": "judge j"} for row in rows])
        await database.close()

    def drift(*options: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["--home", str(home), "drift", *options], env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        return result.output

    assert "No model has 30 grades of 1 d and as many before" in drift()
    asyncio.run(grade(20, 0.8, 5))
    asyncio.run(grade(10, 0.8, 100))
    asyncio.run(grade(0, 0.8, 20))
    assert "No model" in drift()
    asyncio.run(grade(0, 0.6, 20))
    assert re.search(r"m +judge j +0.720 +40 +0.820 +100 +\+12.2% +alarm", drift(code=1))
    (found,) = json.loads(drift("--json", code=1))
    assert (found["subject"], found["is_firing"]) == ("m", True)
    assert "quality-drift" in wootz(home, "check", code=1)


def test_what_is_not_there_is_one_line(home: Path) -> None:
    assert wootz(home, "show", "inc-none", code=2).count("\n") == 1
    assert 'no rule "nonsense"' in wootz(home, "replay", "--rule", "nonsense", code=2)
    wootz(home, "silence", "--rule", "errors", "--for", "2h", "--why", "maintenance")
    assert "maintenance" in wootz(home, "silence")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[[rule]]\nname = "errors"\nfires = 0.01', "over before it began"),
        ('[[rule]]\nname = "errors"\nfire = 1', "fire"),
        ('[[rule]]\nname = "errors"\nmeasure = "signal:nonsense"', "no measure"),
        ('[[rule]]\nname = "errors"\nwindow = "soon"', "no period"),
        ("[other]\nx = 1", r"\[\[rule\]\] tables only"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_by_its_name(home: Path, text: str, problem: str) -> None:
    (home / "own.toml").write_text(text)
    (home / "wootz.toml").write_text(f'[alerts]\nfile = "{home / "own.toml"}"')
    assert re.search(problem, wootz(home, "rules", code=2))


def test_ones_own_thresholds_and_latency_budgets_are_in_force(home: Path) -> None:
    (home / "own.toml").write_text('[[rule]]\nname = "cost-spike"\nfires = 6')
    text = f'[alerts]\nfile = "{home / "own.toml"}"\n[telemetry.latency_budget]\nfirst_token = 900'
    (home / "wootz.toml").write_text(text)
    rules = {rule["name"]: rule for rule in json.loads(wootz(home, "rules", "--json"))}
    assert rules["cost-spike"]["fires"] == 6
    assert rules["cost-spike"]["floor"] == 1.0
    assert rules["latency-first-token"]["fires"] == 0.9


def test_the_rules_file_is_prometheus_s_and_speaks_of_metrics_that_are_there(home: Path) -> None:
    text = wootz(home, "rules", "--prometheus")
    (group,) = yaml.safe_load(text)["groups"]
    exported = {name for family in Metrics().registry.collect() for name in (family.name, f"{family.name}_total")}
    exported |= {f"{name}_bucket" for name in exported} | {"wootz_engine_waiting"}
    for rule in group["rules"]:
        assert set(re.findall(r"wootz_[a-z_]+", rule["expr"])) <= exported, rule["alert"]
    with_query = [name for name, rule in load_rules().items() if rule.promql]
    assert [rule["labels"]["rule"] for rule in group["rules"]] == with_query
    if promtool := shutil.which("promtool"):
        (home / "rules.yml").write_text(text)
        subprocess.run([promtool, "check", "rules", str(home / "rules.yml")], check=True)


def test_every_rule_names_a_page_that_is_there() -> None:
    pages = Path(__file__).parents[2] / "docs" / "operations"
    for rule in load_rules().values():
        assert rule.name in (pages / f"{rule.runbook}.md").read_text()
        assert f"`{rule.name}`" in (pages / "README.md").read_text()
