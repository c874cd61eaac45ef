"""`wootz tokenizer` as it is typed: tables for people, JSON for scripts, one line for what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from tiny_model import write_tiny_model
from typer.testing import CliRunner

from wootz.cli import tokenizer
from wootz.cli.main import OneLineErrors

app = typer.Typer(cls=OneLineErrors)
app.add_typer(tokenizer.app, name="tokenizer")
runner = CliRunner()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def run(*arguments: object, status: int = 0, stdin: str | None = None) -> str:
    result = runner.invoke(app, ["tokenizer", *map(str, arguments)], input=stdin, env={"COLUMNS": "200"})
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.output


def run_json(*arguments: object):
    return json.loads(run(*arguments, "--json"))


def test_report_and_compare(model: Path, tmp_path: Path) -> None:
    assert "zh" in run("report", model)
    (tmp_path / "mine.txt").write_text("License text, and more.")
    seen = run_json("report", model / "tokenizer.json", "--texts", tmp_path / "mine.txt")["mine"]
    assert (seen["num_words"], seen["num_bytes"], seen["round_trip_rate"]) == (4, 23, 1.0)
    plot = tmp_path / "plot.png"
    both = run_json("compare", model, model / "tokenizer.json", "--texts", tmp_path, "--plot", plot)
    assert both[str(model)] == both[str(model / "tokenizer.json")]
    assert plot.stat().st_size > 1000


def test_the_published_cost_example(model: Path) -> None:
    text = run("cost", "--ratio", "cl100k=24/14", "--ratio", "o200k=18/14", "--ratio", "qwen=13/14")
    assert [line.split()[0] for line in text.splitlines() if "." in line] == ["qwen", "o200k", "cl100k"]
    for figure in ("1,509", "45,270.00", "1,131", "33,930.00", "817", "24,510.00"):
        assert figure in text
    assert run_json("cost", model, "--output-price", "4")[0]["cost"]
    assert "give a --ratio" in run("cost", status=2)
    assert "not a price" in run("cost", "--ratio", "a=1", "--price", "cheap", status=2)


def test_lint_ends_with_status_1_on_errors(model: Path, tmp_path: Path) -> None:
    assert [finding["code"] for finding in run_json("lint", model)] == ["no-mask"]
    file = tmp_path / "chat.json"
    file.write_text(json.dumps([{"role": "user", "content": "q"}, {"role": "tool", "content": "r"}]))
    assert "result-without-call" in run("lint", model, "--messages", file, status=1)


def test_encode_shows_tokens_and_takes_text_as_text(model: Path) -> None:
    tokens = run_json("encode", model, "License <|im_end|> é世")
    assert b"".join(bytes.fromhex(token["bytes"]) for token in tokens).decode() == "License <|im_end|> é世"
    assert not any(token["kind"] == "control" for token in tokens)
    assert {
        "kind": "control",
        "id": 2,
        "text": "<|im_end|>",
        "spelling": "<|im_end|>",
        "bytes": b"<|im_end|>".hex(),
    } in (run_json("encode", model, "a<|im_end|>", "--control", "parse"))
    assert "⟨e4⟩" in run("encode", model, "-", stdin="世")
    assert "control token" in run("encode", model, "<|im_end|>", "--control", "forbid", status=2)


def test_chat_shows_the_frame_and_what_is_learned(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}))
    text = run("chat", model, file, "--show-ids")
    assert "<|im_start|>" in text
    tokens = run_json("chat", model, file, "--mask")
    assert "".join(token["text"] for token in tokens if token["learned"]) == "a<|im_end|>"
    plain = run_json("chat", model, file, "--template", "plain")
    assert "".join(token["text"] for token in plain).startswith("User: q\nAssistant: a")
    assert "chatml, qwen" in run("chat", model, file, "--template", "alpaca", status=2)
    file.write_text("{}")
    assert "no list of messages" in run("chat", model, file, status=2)


def test_inspect(model: Path) -> None:
    assert "fingerprint" in run("inspect", model)
    [token] = run_json("encode", model, "License")[:1]
    assert "merge" in run("inspect", model, token["id"])
    assert run_json("inspect", model, 2, 99999)[1]["kind"] == "unused"


@pytest.mark.slow
def test_verify_names_the_first_difference(model: Path, tmp_path: Path, smollm2_gguf: Path) -> None:
    run("verify", model, model / "tokenizer.json")
    assert "differ from token" in run("verify", model, smollm2_gguf, status=1)


def test_study(model: Path, tmp_path: Path) -> None:
    plot = tmp_path / "sizes.svg"
    points = run_json("study", model, "--sizes", "512,1024", "--width", 64, "--layer-parameters", "1e5", "--plot", plot)
    assert points[1]["num_tokens"] < points[0]["num_tokens"]
    assert plot.read_text().startswith("<?xml")


def test_expand(model: Path, tmp_path: Path) -> None:
    terms = tmp_path / "terms.txt"
    terms.write_text("myocardial\nheart attack\n")
    result = run_json("expand", model, tmp_path / "out", "--new-terms", terms)
    assert result["tokens"] == ["myocardial", " myocardial", "heart attack", " heart attack"]
    assert "one token" in run("expand", tmp_path / "out", tmp_path / "again", "--new-terms", terms, status=2)


def test_train_and_convert(tmp_path: Path, smollm2_gguf: Path) -> None:
    texts = Path(__file__).parents[2] / "LICENSE"
    out = tmp_path / "new"
    run(
        "train",
        texts,
        "-o",
        out,
        "--vocab-size",
        600,
        "--reserve",
        3,
        "--template",
        "chatml",
        "--special",
        "<|im_end|>",
    )
    facts = run_json("inspect", out)
    assert (facts["tokens"], facts["special"], facts["chat template"]) == (600, 4, True)
    run("convert", out, tmp_path / "ranks.tiktoken")
    assert len((tmp_path / "ranks.tiktoken").read_text().splitlines()) == 596
    run("convert", smollm2_gguf, tmp_path / "smol")
    run("verify", smollm2_gguf, tmp_path / "smol")
    assert "none of byte_bpe" in run("train", texts, "-o", out, "--vocab-size", 600, "--algorithm", "magic", status=2)


def test_a_tokenizer_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WOOTZ_HOME", str(tmp_path))
    assert 'no model "nonesuch" here' in run("report", "nonesuch", status=2)
