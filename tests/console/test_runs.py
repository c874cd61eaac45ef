"""The Runs page shows what run folders hold, and only to admins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console_house import Browser, build_house

from wootz.training.runs import RunFolder


def a_run(folder: Path, rate: float, losses: list[float]) -> RunFolder:
    run = RunFolder.create(folder, {"name": folder.name, "pretrain": {"learning_rate": rate}})
    for step, loss in enumerate(losses):
        run.append("metrics", {"step": step, "loss": loss, "grad_norm": 1.0, "tokens_per_second": 100.0 + step})
    scores = {"arc": {"accuracy": 0.25, "standard_error": 0.02, "items": 200}}
    run.append("evaluations", {"step": len(losses) - 1, "bits_per_byte": 1.75, "benchmarks": scores})
    run.append("events", {"line": "step 2: update skipped <b>"})
    run.append("samples", {"step": 2, "prompt": "The", "text": "The <script>alert(1)</script> river"})
    run.set_status("done")
    return run


async def test_curves_comparison_and_what_guards_saw_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "runs" / "slow", 1e-4, [4.0, 3.9, 3.8])
    fast = a_run(tmp_path / "runs" / "fast", 1e-2, [4.0, 3.0, 2.0])
    house = await build_house(tmp_path / "house", accounts=False)
    try:
        browser = Browser(house.app)
        page = (await browser.get("/runs?run=slow&run=fast")).text
        assert page.count('data-testid="runs-row"') == 2
        assert page.count("<polyline") == 8
        assert "Accuracy, arc" in page
        assert "pretrain.learning_rate" in page
        assert "<script>alert" not in page
        assert "update skipped &lt;b&gt;" in page
        (fast.path / "metrics.jsonl").open("a").write('{"step": 3, "loss": 1.')  # a line that a kill cut off
        assert (await browser.get("/runs?run=fast")).status_code == 200
    finally:
        await house.close()


def test_what_was_made_again_after_a_kill_counts_once(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 1e-3, [4.0, 3.0, 2.0])
    run.append("metrics", {"step": 2, "loss": 1.5, "grad_norm": 1.0, "tokens_per_second": 1.0})
    assert [row["loss"] for row in run.rows("metrics")] == [4.0, 3.0, 1.5]
    run.go_back_to(1)
    assert [json.loads(line)["step"] for line in (run.path / "metrics.jsonl").read_text().splitlines()] == [0]
