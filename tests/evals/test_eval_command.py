"""`wootz eval` as it is typed, against an OpenAI-compatible server and against an engine of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_readers import Reader, last, solve
from serving import GatewayServer
from typer.testing import CliRunner, Result

from wootz.cli import evals
from wootz.cli.main import OneLineErrors, globals_
from wootz.store import ModelStore


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    folder = tmp_path_factory.mktemp("gateway")
    models = {"whole": Reader(solve), "short": Reader(solve, last(600))}
    for name, model in models.items():
        model.name = name
    with GatewayServer(folder, lambda: dict(models), accounts=False) as server:
        yield server


@pytest.fixture
def wootz_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import typer

    app = typer.Typer(cls=OneLineErrors)
    app.callback()(globals_)
    app.add_typer(evals.app, name="eval")
    monkeypatch.setenv("WOOTZ_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("WOOTZ_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["eval", *map(str, arguments)])

    return run


def test_a_heatmap_from_a_server(wootz_eval, server, tiny_model_folder, tmp_path):
    command = (
        "needle", "--model", "whole", "--url", server.url, "--tokenizer", tiny_model_folder, "--lengths", "1024,2048",
        "--depths", "0,100", "--samples", 2, "--concurrency", 2, "--out", tmp_path / "run",
    )  # fmt: skip
    result = wootz_eval(*command)
    assert result.exit_code == 0, result.output
    assert "100% (51–100)" in result.stdout
    assert "effective length at 85.6%: 2048 tokens (the longest tested)" in result.stdout
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert names >= {"run.json", "rows.jsonl", "report.json", "report.md", "heatmap.png", "lengths.png"}

    before = (tmp_path / "run" / "rows.jsonl").read_text()
    assert wootz_eval(*command).exit_code == 0
    assert (tmp_path / "run" / "rows.jsonl").read_text() == before
    other = wootz_eval(*command, "--seed", 1)
    assert other.exit_code == 2
    assert "other settings (seed)" in other.stderr


@pytest.mark.slow
def test_the_gate_fails_a_model_that_reads_less_than_required(wootz_eval, server, tmp_path):
    command = (
        "working-context", "--model", "short", "--url", server.url, "--claimed", 2048, "--lengths", "512,2048",
        "--tasks", "niah_single_2,vt", "--samples", 2,
    )  # fmt: skip
    assert wootz_eval(*command).exit_code == 0
    assert wootz_eval(*command, "--require", 512, "--max-gap", 4).exit_code == 0
    failed = wootz_eval(*command, "--require", 2048, "--json")
    assert failed.exit_code == 1
    assert "works up to 512 tokens, 2048 are required" in failed.stderr
    assert json.loads(failed.stdout)["working_context"]["working_length"] == 512
    (folder,) = (tmp_path / "home" / "runs").iterdir()  # three times the same settings: asked once
    assert folder.name.startswith("working-context-short-")


@pytest.mark.slow
def test_the_working_length_is_recorded_where_models_are_listed(wootz_eval, server, tiny_model_folder, tmp_path):
    """In a folder's own config, beside the record of how it was extended; in the store, whose files stay untouched."""
    folder, store = tmp_path / "tiny", ModelStore(tmp_path / "home" / "models")
    shutil.copytree(tiny_model_folder, folder)
    record = {"method": "yarn", "factor": 2.0, "original_length": 64, "working_length": None}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"context_extension": record}))
    stored = store.pull(f"file:{folder}", name="kept")
    command = (
        "working-context", "--claimed", 400, "--lengths", 400, "--tasks", "niah_single_1", "--samples", 1, "--record",
        "--threshold", 0,
    )  # fmt: skip
    result = wootz_eval(*command, "--model", folder)
    assert result.exit_code == 0, result.output
    written = json.loads((folder / "config.json").read_text())
    assert written["context_extension"]["working_length"] == written["working_context"]["working_length"] == 400
    assert written["working_context"]["tested_length"] == 400
    assert store.pull(f"file:{folder}", name="again").working_length == 400
    assert written["hidden_size"] == config["hidden_size"]
    assert store.get("kept").working_length is None
    assert wootz_eval(*command, "--model", "kept").exit_code == 0
    assert store.get("kept").working_length == 400
    assert store.get("kept").sha256s == stored.sha256s
    for model, more in (("short", ("--url", server.url)), ("nobody", ())):
        refused = wootz_eval(*command, "--model", model, *more)
        assert refused.exit_code == 2
        assert "--record writes to a model that is here" in refused.stderr


def test_the_gate_over_ones_own_questions(wootz_eval, server, tmp_path):
    data = tmp_path / "own.jsonl"
    needle = "One of the special magic numbers for blue-lamp is: 4711."
    question = "What is the special magic number for blue-lamp mentioned in the text?"
    data.write_text(json.dumps({"prompt": question, "answer": "4711", "context": needle}))
    command = ("working-context", "--claimed", 1024, "--data", data, "--lengths", 1024, "--url", server.url)
    assert wootz_eval(*command, "--model", "whole", "--require", 1024).exit_code == 0
    assert wootz_eval(*command, "--model", "short", "--require", 1024).exit_code == 1


@pytest.mark.parametrize(
    "command",
    [
        ("multi-needle", "--needles", "2", "--lengths", "1024", "--samples", "1", "--chain"),
        ("ruler", "--tasks", "cwe,qa_2", "--lengths", "1024", "--samples", "1"),
        ("lost-in-middle", "--positions", "1,10,20", "--samples", "1"),
        ("prefill", "--lengths", "256,512", "--samples", "1"),
    ],
    ids=lambda command: command[0],
)
def test_every_command_runs_to_its_report(wootz_eval, server, tmp_path, command):
    result = wootz_eval(*command, "--model", "whole", "--url", server.url, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "nobody"), 'has no model "nobody"; there is'),
        (("--model", "whole", "--lengths", "20"), "its shortest prompt takes"),
        (("--model", "whole", "--haystack", "none.txt"), "none.txt can't be read"),
        (("--model", "whole", "--tokenizer", "none"), 'there is no tokenizer "none"'),
    ],
)
def test_what_is_wrong_is_one_line(wootz_eval, server, arguments, message):
    result = wootz_eval("needle", "--url", server.url, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.real
def test_the_real_model_finds_a_needle_in_an_engine_of_its_own(wootz_eval, smollm2_gguf, tmp_path):
    command = ("needle", "--model", smollm2_gguf, "--lengths", "256,512", "--samples", 2, "--out", tmp_path / "run")
    result = wootz_eval(*command, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["by_length"][0]["mean"] > 0.7
    assert [round(entry["prompt_tokens"]) for entry in report["by_length"]] == [192, 384]  # counted exactly
