"""What a sweep means, on curves whose answer is known."""

from __future__ import annotations

import httpx
import pytest

from wootz.app.diagnosis import Objectives, Use, break_even, check, cost, knee, use, verdict
from wootz.app.engine_counts import COUNTERS, GAUGES, EngineCounts, watch
from wootz.engine.protocol import Stats
from wootz.models.planning.hardware import device
from wootz.telemetry.metrics import Metrics


def level(concurrency: int = 1, rate: float = 100.0, *, ttft=0.1, itl=0.01, failed=0, engine=None) -> dict:
    return {
        "concurrency": concurrency,
        "requests": 1000,
        "failed": failed,
        "wall_seconds": 10.0,
        "output_tokens_per_second": rate,
        "time_to_first_token": {"p95": ttft},
        "inter_token_latency": {"p95": itl},
        "engine": engine,
    }


def test_the_usual_objectives_are_kept_up_to_their_limits():
    assert all(one.kept for one in check(level(ttft=0.5, itl=0.05, failed=1), Objectives()))
    missed = [one for one in check(level(ttft=0.501, itl=0.051, failed=2), Objectives()) if not one.kept]
    assert len(missed) == 3
    assert check(level(ttft=9), Objectives(None, None, None)) == []


@pytest.mark.parametrize(
    ("rates", "at"),
    [
        ([100, 200, 390, 410, 420], 4),
        ([100, 195, 380, 720, 730], 8),
        ([100, 101, 102, 103, 104], None),
        ([50, 100, 150, 200, 250], None),
        ([100, 90, 80, 70, 60], None),
        ([100, 200], None),
    ],
)
def test_the_knee_is_where_the_curve_bends(rates, at):
    assert knee([level(2**power, rate) for power, rate in enumerate(rates)]) == at


def test_use_is_counted_from_the_engines_own_numbers():
    """One step of one token reads all weights once and does two operations with each: 7e9 * 2 B at 3.35 TB/s."""
    counted = {"parameters": 7e9, "steps": 2000, "tokens_generated": 2000, "prompt_tokens_computed": 0}
    used = use(level(engine=counted), device("h100"), bytes_per_weight=2)
    assert used is not None
    assert used.bandwidth == pytest.approx(2000 * 14e9 / 10 / 3.35e12)
    assert used.compute == pytest.approx(2 * 7e9 * 2000 / 10 / 989e12)
    assert verdict(used).startswith("memory-bound soon")
    assert use(level(), device("h100"), 2) is None


@pytest.mark.parametrize(
    ("compute", "bandwidth", "said"),
    [
        (0.4, 0.95, "memory-bound: quantise"),
        (0.69, 0.69, "headroom"),
        (0.95, 0.5, "compute-bound:"),
        (0.8, 0.2, "soon"),
    ],
)
def test_the_verdict_follows_the_rules(compute, bandwidth, said):
    assert said in verdict(Use(compute, bandwidth))


def test_a_million_tokens_cost_what_the_hour_costs_at_that_rate():
    made = cost(1.20, 0, 7400)
    assert made.output_alone == pytest.approx(0.045, abs=0.0005)
    made = cost(2.0, 1000, 500, ratio=4)
    assert made.output == 4 * made.input
    assert made.input * 1000 + made.output * 500 == pytest.approx(2.0 / 3600 * 1e6)


def test_an_api_is_dearer_from_some_volume_on():
    """At 7400 tokens a second and $1.20 an hour, output for $15 a million costs 333 times as much."""
    even = break_even(1.20, 0, 7400, api_input=0, api_output=15.0)
    assert even.times_dearer == pytest.approx(333, abs=1)
    assert even.tokens_a_month == pytest.approx(1.20 * 730 / 15 * 1e6)
    assert break_even(100.0, 10, 10, api_input=0.1, api_output=0.1).tokens_a_month is None


def stats(**counts) -> Stats:
    fields = dict.fromkeys(Stats.__struct_fields__, 0)
    return Stats(**{**fields, "blocks_total": 10, "parameters": 7, **counts})


async def test_the_engines_counts_are_read_from_the_servers_metrics(monkeypatch):
    monkeypatch.setattr("wootz.app.engine_counts.POLL_SECONDS", 0.01)
    metrics = Metrics()

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=metrics.text())

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://server") as client:
        metrics.engines.stats = {"m": stats(steps=5, prompt_tokens_computed=10), "other": stats(steps=99)}
        async with watch(client, "m") as counts:
            metrics.engines.stats["m"] = stats(
                steps=25, prompt_tokens_computed=40, prompt_tokens_cached=10, blocks_used=5, requests_admitted=4,
                wait_seconds=2.0,
            )  # fmt: skip
        counted = counts.summary()
        assert counted is not None
        assert (counted["steps"], counted["prefix_hit_rate"], counted["queue_wait_seconds"]) == (20, 0.25, 0.5)
        assert counted["cache_utilisation"] == 0.5
        async with watch(client, "unknown") as counts:
            pass
        assert counts.summary() is None


def test_an_engine_that_began_anew_tells_nothing():
    names = (*GAUGES, *COUNTERS)
    assert EngineCounts([dict.fromkeys(names, 1.0), dict.fromkeys(names, 5.0)]).summary() is not None
    assert EngineCounts([dict.fromkeys(names, 5.0), dict.fromkeys(names, 1.0)]).summary() is None
