"""The commands of scale: plans, laws and muP, as a user types them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wootz.cli.main import app
from wootz.training.planning.scaling_laws import Law


def wootz(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    return result.output


def test_a_training_run_is_planned() -> None:
    words = ("plan", "llama-3-70b", "--train-tokens", "15e12", "--gpus", "64", "--batch-tokens", "4194304")
    plan = json.loads(wootz(*words, "--unique-tokens", "3e12", "--efficiency", "0.4", "--json"))
    assert plan["flops"] == pytest.approx(6.35e24, rel=0.01)
    assert plan["device_years"] == pytest.approx(508.6, rel=0.01)
    assert "5.0 epochs" in plan["warnings"][0]
    assert plan["layouts"][0]["tensor"] == 8 and plan["layouts"][0]["fits"]  # noqa: PT018
    table = wootz(*words)
    assert "TP8" in table and "device-years" in table  # noqa: PT018


def test_a_model_for_much_use_is_smaller() -> None:
    found = json.loads(wootz("scaling", "optimum", "--parameters", "8e9", "--inference-tokens", "1e13", "--json"))
    rule, life = found["chinchilla's rule"], found["cheapest in all"]
    assert rule["tokens"] == pytest.approx(160e9)
    assert life["parameters"] < rule["parameters"]
    assert life["lifetime_flops"] < rule["lifetime_flops"]
    assert "positive --flops or --parameters" in wootz("scaling", "optimum")


def test_runs_are_fitted_from_rows_and_from_folders(tmp_path: Path) -> None:
    law = Law(1.7, 400.0, 600.0, 0.35, 0.31)
    rows = [{"parameters": n, "tokens": d, "loss": law.loss(n, d)} for n in (1e6, 1e7, 1e8) for d in (1e8, 1e9, 1e10)]
    file = tmp_path / "runs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    for number, row in enumerate(rows):
        (tmp_path / "runs" / str(number)).mkdir(parents=True)
        (tmp_path / "runs" / str(number) / "result.json").write_text(json.dumps(row))
    asked = ("--parameters", "1e9", "--tokens", "1e11", "--json")
    found = json.loads(wootz("scaling", "fit", str(file), *asked))
    assert found["forecast"][0] == pytest.approx(law.loss(1e9, 1e11), rel=0.01)
    assert math.isclose(found["law"]["alpha"], 0.35, rel_tol=0.05)
    assert json.loads(wootz("scaling", "fit", str(tmp_path / "runs"), *asked))["law"] == found["law"]
    file.write_text('{"parameters": 1}')
    assert "needs the figures parameters, tokens and loss" in wootz("scaling", "fit", str(file))
    assert "No such file" in wootz("scaling", "fit", str(tmp_path / "none.jsonl"))


def test_the_coordinate_check_prints_powers() -> None:
    found = json.loads(wootz("mup", "check", "--widths", "32,64", "--seeds", "1", "--steps", "1", "--json"))
    assert found["muP"]["exponents"].keys() == found["standard"]["exponents"].keys()
    assert "multiples of 4" in wootz("mup", "check", "--widths", "32")
