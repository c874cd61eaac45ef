"""A run on disk: killed and continued, reported, drawn."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_readers import Reader, count_words, last, seen_through, solve

from wootz.core import BadRequestError, RateLimitError, UpstreamError
from wootz.evals import Journal, asking
from wootz.evals import long_context as ctx
from wootz.evals.long_context.plots import plot_report
from wootz.evals.long_context.report import as_markdown, build_report, findings, write_report

SLOW_RUN = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from scripted_readers import Reader, count_words, solve
from wootz.evals import Journal, long_context as ctx

class Slow(Reader):
    async def chat(self, request):
        await asyncio.sleep(0.05)
        async for chunk in super().chat(request):
            yield chunk

cases = ctx.needle_cases(ctx.Setup(count=count_words), [256], [0, 0.5, 1], 100)
with Journal(Path({folder!r}), {{"seed": 0}}) as journal:
    asyncio.run(ctx.evaluate(Slow(solve), cases, journal, concurrency=2))
"""


def run_and_kill(folder: Path) -> int:
    """Begin a run in a process of its own, kill it and tear its last line; returns how many rows are whole."""
    script = SLOW_RUN.format(tests=str(Path(__file__).parent), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", script])
    rows = folder / "rows.jsonl"
    while not rows.exists() or rows.read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with rows.open("ab") as file:
        file.write(b'{"id": "needle/256/1.0')  # a row that was being written
    return rows.read_bytes().count(b"\n")


async def test_a_killed_run_goes_on_where_it_stopped(tmp_path, setup):
    folder = tmp_path / "run"
    done = run_and_kill(folder)
    cases = ctx.needle_cases(setup, [256], [0, 0.5, 1], 100)
    model = Reader(solve)
    with Journal(folder, {"seed": 0}) as journal:
        answered = await ctx.evaluate(model, cases, journal)
    assert len(model.prompts) == len(cases) - done
    assert [row.id for row in answered] == [case.id for case in cases]
    assert {row.score for row in answered} == {1.0}
    kept = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in kept) == sorted(case.id for case in cases)


def test_a_run_with_other_settings_is_not_continued(tmp_path):
    Journal(tmp_path, {"seed": 0, "lengths": (1, 2)}).append({"id": "a"})
    assert list(Journal(tmp_path, {"seed": 0, "lengths": [1, 2]}).rows) == ["a"]
    with pytest.raises(BadRequestError, match="other settings \\(seed\\)"):
        Journal(tmp_path, {"seed": 1, "lengths": [1, 2]})


def test_a_damaged_run_is_one_error(tmp_path):
    Journal(tmp_path, {})
    (tmp_path / "rows.jsonl").write_text("nonsense\n")
    with pytest.raises(BadRequestError, match="damaged"):
        Journal(tmp_path, {})
    (tmp_path / "run.json").write_text("nonsense")
    with pytest.raises(BadRequestError, match="no run of ours"):
        Journal(tmp_path, {})


async def test_what_may_pass_is_tried_again_and_what_may_not_ends_the_run(ask, setup, monkeypatch):
    monkeypatch.setattr(asking, "PATIENCE_SECONDS", 0.0)

    class Flaky(Reader):
        failures = 0
        error: Exception = RateLimitError("slow down", retry_after=0)

        async def chat(self, request):
            self.failures += 1
            if self.failures % 3:
                raise self.error
            async for chunk in super().chat(request):
                yield chunk

    cases = ctx.needle_cases(setup, [256], [0.5], 2)
    assert [row.score for row in await ask(Flaky(solve), cases)] == [1, 1]

    class Down(Reader):
        async def chat(self, request):
            raise UpstreamError("the endpoint cannot be reached")
            yield

    with pytest.raises(UpstreamError, match="cannot be reached"):
        await ask(Down(solve), cases)


async def test_as_many_questions_are_open_as_asked_for(ask, setup):
    class Counting(Reader):
        now = most = 0

        async def chat(self, request):
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.01)
            async for chunk in super().chat(request):
                yield chunk
            self.now -= 1

    model = Counting(solve)
    await ask(model, ctx.needle_cases(setup, [256], [0, 1], 6), concurrency=3)
    assert model.most == 3


async def test_the_report_says_what_was_found(ask, setup, tmp_path):
    cases = ctx.needle_cases(setup, [512, 1024, 2048], [0, 0.5, 1], 2, ["end", "start"])
    rows = await ask(Reader(solve, last(600), window=1536), cases)
    settings = {"kind": "needle", "model": "reader"}
    report = build_report(rows, settings, threshold=0.7, claimed=2048)
    assert report["effective_length"] == 512
    assert [score["task"] for score in report["scores"]][:2] == ["needle", "needle (question at start)"]
    assert [score["count"] for score in report["by_length"]] == [6, 6, 6]  # of the first place only
    assert report["working_context"]["gap_ratio"] == 4
    files = write_report(report, tmp_path)
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(report))
    text = files[1].read_text()
    assert text == as_markdown(report)
    for part in ("# reader: needle", "claimed 2048 tokens, working 512 (gap 4.00)", "refused as too long", "| 50% |"):
        assert part in text
    assert any(line.startswith("question at end rather than start: +") for line in findings(report))

    drawn = plot_report(report, tmp_path)
    assert [file.name for file in drawn] == ["heatmap.png", "position.png", "lengths.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn)


async def test_the_u_curve_and_the_prefill_curve_are_drawn(ask, setup, tmp_path):
    sees = seen_through(lambda position, total: position in (1, total))
    rows = await ask(Reader(solve, sees), ctx.lost_in_the_middle_cases(setup, positions=[1, 10, 20], samples=2))
    report = build_report(rows, {"kind": "lost-in-middle"})
    assert report["middle_dip"]["index"] == 1
    assert report["effective_length"] is None
    assert [file.name for file in plot_report(report, tmp_path, "svg")] == ["position.svg"]
    assert "middle-dip index +100.0 points" in as_markdown(report)

    rows = await ask(Reader(lambda prompt: "OK"), ctx.prefill_cases(setup, [128, 256, 512], 2))
    rows = [replace(row, time_to_first_token=row.length * 1e-3 + row.length**2 * 1e-5) for row in rows]
    report = build_report(rows, {"kind": "prefill"})
    assert report["prefill"]["crossover"] == pytest.approx(100)
    assert [file.name for file in plot_report(report, tmp_path, "svg")] == ["prefill.svg"]
    assert "Time to first token" in as_markdown(report)


def test_the_prefill_fit_finds_both_parts():
    linear = ctx.prefill_curve([(n, 0.002 * n) for n in (256, 512, 1024)])
    assert linear.linear == pytest.approx(0.002)
    assert linear.quadratic == pytest.approx(0, abs=1e-9)
    assert linear.exponents == pytest.approx([1, 1])
    both = ctx.prefill_curve([(n, 0.001 * n + 1e-6 * n * n) for n in (100, 1000, 10_000, 100_000)])
    assert both.crossover == pytest.approx(1000)
    assert 1 < both.exponents[0] < both.exponents[-1] < 2
    assert ctx.prefill_curve([(100, 0.5), (100, 0.7), (100, 0.6)]).medians == {100: 0.6}


async def test_prefill_prompts_share_no_beginning(setup):
    prompts = [case.build().prompt for case in ctx.prefill_cases(setup, [128, 256], 3)]
    assert len({prompt[:16] for prompt in prompts}) == len(prompts)


async def test_tokens_are_estimated_from_what_the_endpoint_tells(setup):
    count = await ctx.counter_by_probing(Reader(solve))
    for task in ("niah_single_2", "vt", "qa_1"):
        (case,) = ctx.ruler_cases(ctx.Setup(count=count), [1024], 1, [task])
        question = case.build()
        assert count_words(question.prompt) + question.max_tokens == pytest.approx(1024, rel=0.2)

    class Silent(Reader):
        def _usage(self, prompt):
            return super()._usage("")

    with pytest.raises(BadRequestError, match="does not tell its usage"):
        await ctx.counter_by_probing(Silent(solve))
