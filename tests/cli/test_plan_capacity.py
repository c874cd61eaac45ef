"""`wootz plan capacity` and `wootz reload`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wootz.cli.main import app
from wootz.gateway.scaling import Queue


def wootz(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    return result.output


def plan(*words: str) -> dict[str, Any]:
    return json.loads(wootz("plan", "capacity", *words, "--json"))


def test_replicas_waits_and_cost() -> None:
    found = plan("--rate", "6", "--in", "1000", "--out", "200", "--places", "16", "--price", "2.5", "--itl", "0.025")
    assert found["service_seconds"] == pytest.approx(0.3 + 200 * 0.025)
    assert found["offered_erlangs"] == pytest.approx(31.8)
    assert found["replicas"] == 4, "32 of 48 places would be 66 % busy, over --up"
    four = next(row for row in found["by_replicas"] if row["replicas"] == 4)
    assert four["mean_wait"] == pytest.approx(Queue(6, 5.3, 64).mean_wait)
    assert four["usd_a_month"] == pytest.approx(4 * 2.5 * 730)
    assert [row["enough"] for row in found["by_replicas"]] == [False, False, True, True, True]
    assert "4 replicas" in wootz("plan", "capacity", "--rate", "6", "--places", "16")


@pytest.mark.slow
def test_an_engines_knobs_come_of_the_model_and_the_device() -> None:
    fast, slow = (plan("--model", "llama-3-8b", "--gpu", "h100", "--itl", itl)["engine"] for itl in ("0.015", "0.05"))
    assert fast["max_num_seqs"] < slow["max_num_seqs"]
    assert fast["inter_token_seconds"] <= 0.015
    assert fast["weights"].startswith("FP8")
    assert plan("--model", "llama-3-8b", "--gpu", "a100", "--itl", "0.05")["engine"]["weights"].startswith("AWQ INT4")
    assert "does not write a token in 0.1 ms" in wootz(
        "plan", "capacity", "--model", "llama-3-8b", "--itl", "0.0001", code=2
    )


def test_a_recorded_load_is_simulated_and_drawn(tmp_path: Path) -> None:
    trace, picture = tmp_path / "load.csv", tmp_path / "load.png"
    trace.write_text("seconds,rate\n0,0.2\n10800,2\n14400,0.2\n25200,0.2\n")
    words = ("--rate", "2", "--trace", str(trace), "--price", "2", "--plot", str(picture), "--places", "4")
    runs = plan(*words, "--prewarm", "02:50-03:10=6")["simulated"]
    assert list(runs) == ["5 always", "autoscaled", "pre-warmed"]
    assert runs["pre-warmed"]["waited_longer"] < runs["autoscaled"]["waited_longer"]
    assert runs["autoscaled"]["usd"] < runs["5 always"]["usd"] == 5 * 10 * 2
    assert all(run["flaps"] == 0 for run in runs.values())
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--down", "0.7"), "must be under --up"),
        (("--plot", "x.png"), "give --day or --trace"),
        (("--day", "--prewarm", "8:50=3"), "is not like 08:50-09:30=8"),
        (("--day", "--prewarm", "25:00-26:00=3"), "no clock shows"),
        (("--trace", "/nowhere.csv"), "is no CSV of seconds"),
    ],
)
def test_what_makes_no_sense_is_one_line(words: tuple[str, ...], said: str) -> None:
    output = wootz("plan", "capacity", *words, code=2)
    assert said in " ".join(output.replace("│", " ").split())
    assert "Traceback" not in output


@pytest.mark.parametrize("rows", ["", "0,1\n0,2\n", "0,-1\n60,1\n", "0,0\n60,0\n", "a,b\nc,d\n"])
def test_a_load_that_is_none(rows: str, tmp_path: Path) -> None:
    (tmp_path / "load.csv").write_text(rows)
    assert "load.csv" in wootz("plan", "capacity", "--trace", str(tmp_path / "load.csv"), code=2).replace("\n", "")


def test_a_model_is_still_planned_by_its_name_alone() -> None:
    assert "devices" in json.dumps(json.loads(wootz("plan", "llama-3-8b", "--gpu", "h100", "--json")))
    assert "capacity" in wootz("plan", "--help")


def test_nothing_runs_that_could_be_reloaded(tmp_path: Path) -> None:
    said = wootz("--home", str(tmp_path), "reload", "--port", "1234", code=2)
    assert "no `wootz up` runs on port 1234" in said
