"""A request told in words, and where the time of many goes."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wootz.core import PriceConfig
from wootz.telemetry import AttemptRecord, PriceBook, RequestRecord, SpanRecord, Timeline
from wootz.telemetry.explain import explain
from wootz.telemetry.latency import BUDGET, budget, end_to_end, latency_report, percentile, stages_of

PRICES = PriceBook(
    {
        "cheap": PriceConfig(input=Decimal("0.1"), output=Decimal("0.3")),
        "dear": PriceConfig(input=Decimal(3), cached_input=Decimal("0.3"), output=Decimal(15), batch=Decimal("0.5")),
    }
)
START = datetime(2026, 5, 1, tzinfo=UTC)


def record(**fields: object) -> RequestRecord:
    whole: dict = {
        "request_id": "r1", "started_at": START, "route": "/v1/chat/completions", "key_id": "k1", "model": "chat",
        "provider": "far.test", "stream": True, "status": 200, "duration": 2.5,
    }  # fmt: skip
    return RequestRecord(**(whole | fields))


ROUTED = record(
    team_id="t1",
    user="ann",
    tags={"feature": "search"},
    finish_reason="stop",
    prompt_tokens=1000,
    cached_tokens=400,
    completion_tokens=20,
    reasoning_tokens=5,
    cost=Decimal("0.00222") + Decimal("0.0001"),
    cache="miss",
    deployment="dear",
    num_attempts=2,
    time_to_first_token=0.9,
    inter_token_latency=0.02,
    queue_time=0.05,
    tools=("look_up",),
    timeline=Timeline(
        spans=(SpanRecord(name="hold", start=0.001, end=0.002), SpanRecord(name="queue", start=0.002, end=0.052)),
        attempts=(
            AttemptRecord(
                deployment="cheap", provider="near.test", start=0.06, end=0.3, error_code="timeout",
                prompt_tokens=1000, cost=Decimal("0.0001"), price="models.cheap.price",
            ),
            AttemptRecord(
                deployment="dear", provider="far.test", start=0.4, first_token=0.9, end=2.5, prompt_tokens=1000,
                cached_tokens=400, completion_tokens=20, cost=Decimal("0.00222"), price="models.dear.price",
            ),
        ),
        notes=("route chat: cheapest of 2 is cheap",),
    ),
)  # fmt: skip


def told(record: RequestRecord, prices: PriceBook = PRICES) -> str:
    return "\n".join(f"{about}: {words}" for about, words in explain(record, prices, BUDGET, {"k1": "research"}))


def test_a_routed_request_is_told_from_who_to_what_it_cost() -> None:
    expected = """\
who: key research, team t1, user ann
tags: feature=search
asked: chat at /v1/chat/completions, streamed, interactive lane
cache: the cache had no answer
why: route chat: cheapest of 2 is cheap
+1.0 ms: hold took 1.0 ms
+2.0 ms: queue took 50.0 ms
+60.0 ms: attempt 1: cheap (near.test) failed with timeout after 240.0 ms; 1,000 + 0 tokens, 0.0001 USD
+400.0 ms: attempt 2: dear (far.test) after 2.10 s, first token after 500.0 ms; 1,000 + 20 tokens, 0.00222 USD
ended: answered by dear, stop (200)
tokens: 1,000 prompt tokens, 400 of them cached, 20 answered, 5 of them reasoning
calls: look_up
time: hold 1.0 ms
time: queue 50.0 ms of 100.0 ms
time: gateway 10.0 ms of 5.0 ms, over its budget by 5.0 ms
time: upstream 500.0 ms
time: first token 900.0 ms of 800.0 ms, over its budget by 100.0 ms
time: between tokens 20.0 ms of 50.0 ms
time: total 2.50 s
cost: cheap at models.cheap.price
: 1,000 prompt tokens x 0.1 / 1M = 0.0001
cost: dear at models.dear.price
: 600 prompt tokens x 3 / 1M = 0.0018
: 400 cached tokens x 0.3 / 1M = 0.00012
: 20 completion tokens x 15 / 1M = 0.0003
total: 0.00232 USD"""
    assert told(ROUTED) == expected


def test_the_lines_of_a_bill_are_those_of_the_batch_lane() -> None:
    batch = record(model="dear", deployment="dear", prompt_tokens=1000, cost=Decimal("0.0015"), lane="batch", price="p")
    assert "dear at p, 50.000000% of it in the batch lane" not in told(batch)
    assert "50% of it in the batch lane\n: 1,000 prompt tokens x 1.5 / 1M = 0.0015\ntotal: 0.0015 USD" in told(batch)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"status": 429, "error_code": "rate_limit_exceeded"}, "ended: refused or failed: rate_limit_exceeded (429)"),
        ({"status": 499, "client_disconnected": True}, "ended: the client went away (499)"),
        (
            {"cache": "semantic", "prompt_tokens": 10},
            "cache: the cache had the answer to a request that means the same",
        ),
        ({"key_id": None}, "who: nobody with a key"),
        (
            {"prompt_tokens": 9, "priced": False},
            "chat at a price that is not known\ntotal: 0 USD, and what has no known price",
        ),
    ],
)
def test_other_ends(fields: dict, words: str) -> None:
    assert words in told(record(**fields))


def test_a_price_that_has_changed_since_is_told_and_the_record_stands() -> None:
    changed = told(ROUTED, PriceBook({"cheap": PriceConfig(input=Decimal(1)), "dear": PriceConfig(input=Decimal(1))}))
    assert changed.endswith(
        "total: 0.00232 USD\nnote: reckoned again with today's config it would be 0.002 USD; the record stands"
    )


def test_what_is_charged_by_the_piece_is_told_in_pieces() -> None:
    prices = PriceBook({"painter": PriceConfig(unit=Decimal("0.04"))})
    made = record(model="painter", deployment="painter", cost=Decimal("0.12"), price="models.painter.price")
    assert told(made, prices).endswith("painter at models.painter.price: 3 x 0.04 = 0.12\ntotal: 0.12 USD")


# --- latency --------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.sampled_from([0.5, 0.95, 0.99]))
def test_percentiles_are_numpys(values: list[float], q: float) -> None:
    assert percentile(sorted(values), q) == pytest.approx(np.percentile(values, 100 * q))


def test_a_stage_over_its_budget_at_p95_is_flagged() -> None:
    def with_hold(seconds: float) -> RequestRecord:
        return record(
            timeline=Timeline(spans=(SpanRecord(name="hold", start=0, end=seconds),)), time_to_first_token=0.1
        )

    usual, slow = [with_hold(0.001)] * 90, [with_hold(0.2)] * 10
    budgets = budget({"hold": 50})
    assert [row.over for row in latency_report(usual, budgets)] == [False, False, False]
    rows = {row.stage: row for row in latency_report([*usual, *slow], budgets)}
    assert (rows["hold"].p50, rows["hold"].p99, rows["hold"].over) == (0.001, 0.2, True)
    assert not rows["first_token"].over
    assert rows["total"].budget is None


def test_stages_that_a_request_never_came_to_are_not_counted() -> None:
    assert stages_of(record(duration=0.1)) == {"total": 0.1}
    open_ended = Timeline(spans=(SpanRecord(name="hold", start=0.0),))
    assert stages_of(record(duration=0.1, timeline=open_ended)) == {"total": 0.1}


def test_the_published_latency_budget_adds_up() -> None:
    """Network 50, gateway 10, app 50, retrieval 100, LLM gateway 5, first token 300, network 50 ms; 25 ms a token."""
    first = sum((50, 10, 50, 100, 5, 300, 50))
    assert first == 565
    assert end_to_end(first, 25, 200) == 5565
