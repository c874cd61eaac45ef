"""`wootz data` and `wootz mix` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from wootz.cli import data, mix
from wootz.cli.main import OneLineErrors

app = typer.Typer(cls=OneLineErrors)
app.add_typer(data.app, name="data")
app.add_typer(mix.app, name="mix")
runner = CliRunner()


def run(*arguments: object, status: int = 0) -> str:
    result = runner.invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.output


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    rows = [f"{n} bottles on the wall, and one of them falls down to {n * 7} of those below." for n in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in [*rows, rows[0]]))
    (tmp_path / "b.txt").write_text("\n".join(f"b {row}" for row in rows))
    (tmp_path / "exam.json").write_text(json.dumps([{"question": rows[5]}]))
    (tmp_path / "recipe.toml").write_text(
        'source = [{ name = "a", path = "a.jsonl" }, { name = "b", path = "b.txt", split = "" }]\n'
        'step = [{ kind = "exact" }]\n[tokens]\ntokenizer = "bytes"\n'
    )
    return tmp_path


def test_build_inspect_and_mix(raw: Path) -> None:
    out = raw / "out"
    assert "2 sources" in run("data", "build", raw / "recipe.toml", "-o", out, "--workers", 1)
    assert "copy 1" in run("data", "inspect", out)
    assert "bottles on the wall" in run("data", "inspect", out, "--examples", "--verify")
    stores = json.loads(run("data", "inspect", out, "--json"))["stores"]
    assert {name: store["documents"] for name, store in stores.items()} == {"a": 60, "b": 60}
    assert "60" in run("data", "inspect", out / "tokens" / "a")
    found = json.loads(run("mix", "optimise", out, "--steps", 2, "--width", 8, "--json"))
    assert sum(found["weights"].values()) == pytest.approx(1)
    (out / "tokens" / "a" / "00000.tokens").write_bytes(b"cut")
    assert "00000.tokens: is damaged" in run("data", "inspect", out, status=2)


def test_dedup_and_decontam(raw: Path) -> None:
    run("data", "dedup", raw / "a.jsonl", "-o", raw / "once", "--workers", 1)
    report = json.loads(
        run("data", "decontam", raw / "once/documents", "-o", raw / "safe", "--against", raw / "exam.json", "--json")
    )["report"]
    assert report["steps"][-1]["reasons"] == {"quotes exam": 1}
    assert report["steps"][0]["before"]["documents"] <= 60


def test_what_is_wrong_is_one_line(raw: Path) -> None:
    for arguments, said in {
        ("build", raw / "none.toml", "-o", raw / "x"): "no such recipe",
        ("dedup", raw / "nothing", "-o", raw / "x"): "there is no file",
        ("dedup", raw / "a.jsonl", "-o", raw / "x", "--jaccard", 2): "between 0 and 1",
        ("inspect", raw): "neither a corpus nor a token store",
    }.items():
        output = run("data", *arguments, status=2)
        assert said in output
        assert "Traceback" not in output


def test_synthesize_says_what_it_may_cost_and_names_mistakes(tmp_path: Path) -> None:
    topics = tmp_path / "topics.txt"
    topics.write_text("rivers\nsteel\n")
    asked = ["data", "synthesize", "-o", tmp_path / "out", "--topics", topics, "--model", "big", "--model", "mid"]
    here = ["--base-url", "http://127.0.0.1:9/v1"]
    told = runner.invoke(app, [*map(str, [*asked, *here, "--dry-run", "--price", "2,10", "--gpu", "3,1000"])])
    assert told.exit_code == 0, told.output
    assert "100 texts on 2 topics by 2 teachers: at most 102K tokens written" in told.stderr
    assert "At most $1.03 at $2 and $10 per million, or $0.09 for 0.03 hours of a GPU at 1,000 tokens/s" in told.stderr
    assert not (tmp_path / "out").exists()
    for wrong, words in (
        (["--base-url", "ftp://x"], "no http:// or https:// address"),
        (here * 3, "2 --model need one --base-url"),
        ([*here, "--key-env", "NO_SUCH_KEY"], "the environment variable NO_SUCH_KEY is not set"),
        ([*here, "--price", "2"], '--price "2" is not two numbers'),
    ):
        assert words in " ".join(run(*asked, *wrong, status=2).replace("│", "").split()), words
    topics.write_text("\n")
    assert "has no topics" in run(*asked, *here, status=2)
