"""`wootz spec`, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from wootz.cli import spec
from wootz.cli.main import OneLineErrors

app = typer.Typer(cls=OneLineErrors, rich_markup_mode="rich")
app.add_typer(spec.app, name="spec")
QUICK = ["--steps", 4, "--length", 16, "--batch", 2]


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output + result.stderr
    return result.output + result.stderr


def test_simulating():
    rows = json.loads(run("spec", "simulate", "--alpha", 0.7, "--k", 4, "--json"))
    assert [round(row["expected_tokens"], 3) for row in rows] == [1, 1.7, 2.19, 2.533, 2.773]
    assert [row["tokens"] for row in rows if row["best"]] == [4]


def test_heads_and_drafts_are_trained_and_measured(tiny_model_folder: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("Licensed under the Apache License. You may obtain a copy of the License. " * 20)
    heads, small = tmp_path / "heads", tmp_path / "small"
    common = ["--text", text, *QUICK]
    assert "loss" in run("spec", "train-heads", tiny_model_folder, "--out", heads, "--kind", "eagle", *common)
    run("spec", "distill", tiny_model_folder, "--target", tiny_model_folder, "--out", small, "--answers", 4, *common)
    for method, path in (("heads", heads), ("draft-model", small)):
        command = ["spec", "measure", tiny_model_folder, "--method", method, "--path", path, "--max-tokens", 8]
        measured = json.loads(run(*command, "--always", "--json"))
        assert measured["same_answers"] == measured["prompts"] == 4
    assert measured["draft_tokens"] == 0, "a draft as large as the model is not worth it"


def test_what_is_wrong_is_one_line(tiny_model_folder: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("Too short.")
    out = tmp_path / "out"
    assert "--kind must be" in run(
        "spec", "train-heads", tiny_model_folder, "--text", text, "--out", out, "--kind", "x", code=2
    )
    assert "too few" in run("spec", "train-heads", tiny_model_folder, "--text", text, "--out", out, code=2)
    assert 'takes a "path"' in run("spec", "measure", tiny_model_folder, "--method", "heads", code=2)
