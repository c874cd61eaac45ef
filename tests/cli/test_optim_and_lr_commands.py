"""`wootz optim` and `wootz lr`, as they are typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from wootz.cli import app


@pytest.fixture
def wootz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_race_shows_kappa_and_its_root(wootz) -> None:
    found = json.loads(wootz("optim", "race", "--kappa", "10,100", "--optimizers", "sgd,momentum", "--json").output)
    assert 9 < found["sgd"]["100"] / found["sgd"]["10"] < 11
    assert 2.5 < found["momentum"]["100"] / found["momentum"]["10"] < 4


def test_memory_of_seven_billion(wootz) -> None:
    plan = json.loads(wootz("optim", "memory", "--params", "7e9", "--zero", "8", "--json").output)
    assert (plan["state"], plan["weights"], plan["master"]) == (7e9, 14e9, 3.5e9)
    assert "4.0 times the weights" in wootz("optim", "memory", "--params", "7e9").output


def test_a_rate_out_of_range_is_said_and_fails(wootz) -> None:
    result = wootz("optim", "check", "--optimizer", "lion", "--lr", "3e-4")
    assert result.exit_code == 1
    assert "1e-05 to 6e-05" in result.output
    assert wootz("optim", "check", "--optimizer", "adamw", "--lr", "3e-4").exit_code == 0


def test_lists_choices_and_demos(wootz, tmp_path: Path) -> None:
    assert "schedule-free" in wootz("optim", "list").output
    assert "lion" in wootz("optim", "choose", "memory-bound").output
    shown = wootz("optim", "demo", "nonstationary", "--plot", tmp_path / "demo.svg").output
    assert "x9.2 under RMSProp" in " ".join(shown.split())  # wherever the line was broken
    assert (tmp_path / "demo.svg").stat().st_size > 1000


def test_a_schedule_is_shown_at_its_landmarks(wootz, tmp_path: Path) -> None:
    line = ["lr", "show", "--schedule", "wsd", "--warmup", "2%", "--cooldown", "10%", "--steps", 1000, "--lr", 3e-4]
    shown = wootz(*line, "--plot", tmp_path / "wsd.svg").output
    assert "20 steps of warmup, 100 of cooldown" in shown
    assert re.search(r"999\s+3e-05", shown)
    rates = json.loads(wootz(*line, "--extend", 2000, "--json").output)
    assert rates["wsd"][:900] == rates["wsd, extended"][:900]
    assert len(rates["wsd, extended"]) == 2000
    assert "llama-7b" in wootz("lr", "presets").output
    assert re.search(r"1,999\s+0.0003", wootz("lr", "show", "--preset", "llama-7b").output)


def test_finding_a_rate(wootz) -> None:
    line = ["lr", "find", "--width", 16, "--layers", 1, "--length", 16, "--batch", 4, "--steps", 25, "--lowest", 1e-3]
    found = json.loads(wootz(*line, "--json").output)
    assert found["starts_learning"] <= found["steepest"] <= found["edge"]
    assert found["suggested"] == pytest.approx([0.3 * found["edge"], found["edge"]])
    assert "try a peak of" in wootz(*line).output


def test_sharpness_beside_its_ceiling(wootz) -> None:
    line = ["lr", "sharpness", "--width", 16, "--length", 8, "--batch", 2, "--steps", 4, "--every", 2, "--lr", 0.1]
    found = json.loads(wootz(*line, "--json").output)
    assert found["ceiling"] == [20.0, 20.0]
    assert all(value > 0 for value in found["sharpness"])


def test_advice_and_the_doctor(wootz, tmp_path: Path) -> None:
    changes = json.loads(
        wootz("lr", "advise", "--batch-from", 256, "--batch-to", 2048, "--opt", "adamw", "--json").output
    )
    assert changes[0]["factor"] == pytest.approx(8**0.5)
    rows = [json.dumps({"step": step, "loss": 5.0 - step / 50 if step < 60 else None}) for step in range(80)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    output = wootz("lr", "doctor", tmp_path).output
    assert "diverged" in output
    assert "1. divide the learning rate by 10" in output


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("optim memory --params 7e9 --optimizer adamm", "there is no optimiser"),
        ("optim demo nothing", "there is no demo"),
        ("lr show --schedule cosin", "there is no schedule"),
        ("lr show --schedule wsd --warmup 9000 --cooldown 9000", "do not fit"),
        ("lr show --schedule cosine --extend 20000", "cannot be extended"),
        ("lr show --preset gpt-9", "there is no preset"),
        ("lr advise --opt adamw", "nothing changes"),
        ("lr doctor nowhere", "no metrics there"),
    ],
)
def test_bad_input_is_one_line(wootz, line: str, says: str) -> None:
    result: Result = wootz(*line.split())
    assert result.exit_code != 0
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_comparing_takes_up_what_was_begun(wootz, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 3000)
    line = ["optim", "compare", "--optimizers", "sgd,lion", "--rates", 2, "--steps", 3, "--text", text, "--seeds"]
    assert wootz(*line, 1, "--out", tmp_path / "out").exit_code == 0
    output = wootz(*line, 2, "--out", tmp_path / "out").output
    assert "lion" in output
    assert len((tmp_path / "out/results.jsonl").read_text().splitlines()) == 4
    assert (tmp_path / "out/plot.png").exists()


@pytest.mark.slow
def test_comparing_schedules(wootz, tmp_path: Path) -> None:
    report = json.loads(
        wootz("lr", "compare", "--steps", 10, "--seeds", 1, "--out", tmp_path / "out", "--json").output
    )[0]
    curves = report["curves"]
    assert list(curves["WSD"])[-1] == "10"
    assert list(curves["WSD, gone on with"])[-1] == "20"
    for step in map(str, range(1, 9)):  # the same run up to its cooldown
        assert curves["WSD"][step] == curves["WSD, gone on with"][step]
