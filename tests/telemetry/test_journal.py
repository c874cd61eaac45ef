"""What a record tells of the way its request went, and what all of the way cost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.dialects import sqlite

from wootz.core import PriceConfig
from wootz.core.journey import Attempt, Journey
from wootz.core.wire import CompletionTokensDetails, PromptTokensDetails, Usage
from wootz.store import Database
from wootz.telemetry import AttemptRecord, Ledger, PriceBook, RequestRecord, SpanRecord, Telemetry, Timeline
from wootz.telemetry.journal import MAX_ATTEMPTS, MAX_NOTES, MAX_TAG_CHARS, MAX_TAGS, tags_of, timeline_of

CHEAP = PriceConfig(input=Decimal("0.10"), output=Decimal("0.30"))
DEAR = PriceConfig(
    input=Decimal(3),
    cached_input=Decimal("0.30"),
    cache_write=Decimal("3.75"),
    output=Decimal(15),
    batch=Decimal("0.5"),
)
USAGE = Usage(
    prompt_tokens=4000,
    completion_tokens=500,
    total_tokens=4500,
    prompt_tokens_details=PromptTokensDetails(cached_tokens=3000, cache_write_tokens=200),
    completion_tokens_details=CompletionTokensDetails(reasoning_tokens=120),
)
COST_DEAR = Decimal("0.0024") + Decimal("0.0009") + Decimal("0.00075") + Decimal("0.0075")


@pytest.fixture
async def telemetry(database: Database) -> AsyncIterator[Telemetry]:
    telemetry = Telemetry(Ledger(database), {"cheap": CHEAP, "dear": DEAR})
    yield telemetry
    await telemetry.close()


async def record(
    telemetry: Telemetry, journey: Journey, usage: Usage = USAGE, model: str = "chat", **fields
) -> RequestRecord:
    """As it comes back out of the ledger."""
    observation = telemetry.observe(
        request_id="r1", route="/v1/chat/completions", key_id="k1", model=model, provider="route", stream=False,
        journey=journey, **fields,
    )  # fmt: skip
    observation.usage(usage)
    written = await observation.end()
    assert await telemetry.ledger.get("r1") == written
    return written


async def test_the_whole_way_is_in_the_record(telemetry: Telemetry) -> None:
    journey = Journey(team="team-1", user="user-7", tags={"feature": "search"}, cache="miss")
    journey.notes.append("route chat: cheapest of 2 is cheap")
    with journey.span("hold", keys=2):
        pass
    failed = journey.attempt("cheap", "near.test")
    failed.error_code, failed.end = "rate_limit_exceeded", journey.now
    answered = journey.attempt("dear", "far.test")
    answered.first_token, answered.end = 0.2, 0.5

    kept = await record(
        telemetry, journey, user="the client says", metadata={"prompt_version": "v12", "feature": "forged"}
    )

    assert (kept.team_id, kept.user) == ("team-1", "user-7")
    assert kept.tags == {"feature": "search", "prompt_version": "v12"}
    assert (kept.deployment, kept.provider, kept.num_attempts, kept.cache) == ("dear", "far.test", 2, "miss")
    assert (kept.cache_write_tokens, kept.reasoning_tokens) == (200, 120)
    assert (kept.cost, kept.priced, kept.price) == (COST_DEAR, True, "models.dear.price")
    first, second = kept.timeline.attempts
    assert (first.deployment, first.error_code, first.cost) == ("cheap", "rate_limit_exceeded", 0)
    assert (second.prompt_tokens, second.cost, second.first_token) == (4000, COST_DEAR, 0.2)
    (span,) = kept.timeline.spans
    assert (span.name, span.attributes) == ("hold", {"keys": 2})
    assert kept.timeline.notes == ("route chat: cheapest of 2 is cheap",)


async def test_a_cheap_attempt_that_was_not_good_enough_is_paid_for(telemetry: Telemetry) -> None:
    """A cascade's first answer, and the answer of a hedge that lost, are on the bill."""
    journey = Journey()
    cheap = journey.attempt("cheap", "near.test")
    cheap.prompt_tokens, cheap.completion_tokens = 4000, 500
    journey.attempt("dear", "far.test")
    kept = await record(telemetry, journey)
    assert kept.timeline.attempts[0].cost == Decimal("0.00055")
    assert kept.cost == COST_DEAR + Decimal("0.00055")
    assert (kept.prompt_tokens, kept.completion_tokens) == (4000, 500)  # What the caller got.


async def test_an_attempt_that_counted_for_itself_is_not_counted_again(telemetry: Telemetry) -> None:
    journey = Journey()
    attempt = journey.attempt("dear", "far.test")
    attempt.prompt_tokens, attempt.completion_tokens = 1000, 10
    kept = await record(telemetry, journey)
    assert kept.cost == Decimal("0.003") + Decimal("0.00015")


@pytest.mark.parametrize("cache", ["exact", "semantic", "shared"])
async def test_what_a_cache_answered_costs_nothing(telemetry: Telemetry, cache) -> None:
    kept = await record(telemetry, Journey(cache=cache), model="dear")
    assert (kept.cost, kept.priced, kept.cache, kept.deployment) == (0, True, cache, None)
    assert kept.prompt_tokens == 4000


async def test_the_batch_lane_is_cheaper(telemetry: Telemetry) -> None:
    kept = await record(telemetry, Journey(lane="batch"), model="dear")
    assert (kept.lane, kept.cost) == ("batch", COST_DEAR / 2)


async def test_an_unknown_price_is_said_to_be_unknown(telemetry: Telemetry) -> None:
    kept = await record(telemetry, Journey(), model="new")
    assert (kept.cost, kept.priced, kept.price) == (0, False, None)


async def test_one_unknown_price_among_attempts_is_enough(telemetry: Telemetry) -> None:
    journey = Journey()
    journey.attempt("new", "somewhere.test").prompt_tokens = 10
    journey.attempt("dear", "far.test")
    kept = await record(telemetry, journey)
    assert (kept.cost, kept.priced, kept.price) == (COST_DEAR, False, "models.dear.price")


async def test_what_used_nothing_needs_no_price(telemetry: Telemetry) -> None:
    assert (await record(telemetry, Journey(), usage=Usage(), model="new")).priced


async def test_waiting_for_a_place_is_told_apart(telemetry: Telemetry) -> None:
    journey = Journey()
    with journey.span("queue"):
        pass
    with journey.span("queue"):
        pass
    kept = await record(telemetry, journey)
    assert kept.queue_time == pytest.approx(sum(span.end - span.start for span in kept.timeline.spans if span.end))


async def test_functions_that_the_answer_calls_are_named_once(telemetry: Telemetry) -> None:
    observation = telemetry.observe(
        request_id="r1", route="/v1/chat/completions", key_id=None, model="dear", provider="x", stream=True
    )
    for calls in (
        [{"index": 0, "id": "a", "function": {"name": "weather", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"city": "Paris"}'}}],
        [{"index": 1, "id": "b", "function": {"name": "weather"}}, {"index": 2, "function": {"name": "clo\0ck"}}],
        [{"function": {"name": f"tool{n}"}} for n in range(100)],
    ):
        observation.tool_calls(calls)
    tools = (await observation.end()).tools
    assert tools[:3] == ("weather", "clo?ck", "tool0")
    assert len(tools) == 32


async def test_a_row_is_bounded_whatever_happened(telemetry: Telemetry) -> None:
    journey = Journey(notes=["long" * 1000] * 1000)
    for n in range(1000):
        journey.attempt("cheap", "near.test").error_code = f"e{n}"
    for n in range(1000):
        with journey.span(f"s{n}", text="\ud800\0" * 1000, number=n, deep={"a": ["b"]}):
            pass
    kept = await record(telemetry, journey)
    assert kept.num_attempts == 1000
    assert len(kept.timeline.attempts) == MAX_ATTEMPTS
    assert kept.timeline.attempts[-1].error_code == "e999"
    assert len(kept.timeline.notes) == MAX_NOTES
    assert kept.timeline.spans[0].attributes == {"text": "??" * 250, "number": 0, "deep": "{'a': ['b']}"}


@given(
    st.dictionaries(st.text(max_size=200), st.text(max_size=200) | st.integers() | st.none(), max_size=40),
    st.dictionaries(st.text(min_size=1, max_size=9), st.text(max_size=9), max_size=3),
)
def test_what_the_client_says_never_overrules_its_key(metadata: dict, own: dict[str, str]) -> None:
    tags = tags_of(Journey(tags=own), metadata)
    clean = {name.replace("\0", "?"): value.replace("\0", "?") for name, value in own.items()}
    assert clean.items() <= tags.items()
    assert len(tags) <= MAX_TAGS
    assert all(len(name) <= MAX_TAG_CHARS and len(value) <= MAX_TAG_CHARS for name, value in tags.items())


@pytest.mark.parametrize("metadata", [None, "text", ["a"], 3, {"a": {"b": 1}}])
def test_metadata_of_another_shape_is_ignored(metadata: object) -> None:
    assert tags_of(Journey(), metadata) == {}


attempts = st.builds(
    Attempt,
    deployment=st.sampled_from(["cheap", "dear", "new"]),
    provider=st.just("x"),
    start=st.just(0.0),
    error_code=st.sampled_from([None, "timeout"]),
    prompt_tokens=st.integers(1, 10**6),
    cached_tokens=st.integers(0, 10**6),
    completion_tokens=st.integers(0, 10**6),
)


@given(st.lists(attempts, max_size=8), st.sampled_from(["interactive", "batch"]))
def test_a_bill_is_the_sum_of_its_attempts(made: list[Attempt], lane) -> None:
    """Against the price list, in integers of a millionth of a millionth."""
    journey = Journey(attempts=made, lane=lane)
    kept = timeline_of(journey, Usage(), PriceBook({"cheap": CHEAP, "dear": DEAR}), datetime.now(UTC))
    for attempt, written in zip(made, kept.attempts, strict=True):
        cached = min(attempt.cached_tokens, attempt.prompt_tokens)
        read, output = attempt.prompt_tokens - cached, attempt.completion_tokens
        exact = {
            "cheap": 100_000 * attempt.prompt_tokens + 300_000 * output,
            "dear": (3_000_000 * read + 300_000 * cached + 15_000_000 * output) // (2 if lane == "batch" else 1),
            "new": 0,
        }[attempt.deployment]
        assert int(written.cost * 10**12) == exact
        assert (written.price is None) == (attempt.deployment == "new")


def test_a_timeline_comes_back_as_it_went() -> None:
    from wootz.telemetry.ledger import requests

    whole = Timeline(
        attempts=(AttemptRecord(deployment="a", provider="b", start=0.1, cost=Decimal("0.000000000001"), price="x"),),
        spans=(SpanRecord(name="hold", start=0.0, end=0.1, attributes={"n": 1, "ok": True}),),
        notes=("why",),
    )
    column = requests.c.timeline.type
    stored = column.bind_processor(sqlite.dialect())
    assert column.process_result_value(json.loads(stored(whole)), None) == whole
    assert stored(Timeline()) is None
    assert column.process_result_value(None, None) == Timeline()


# --- spans and metrics ----------------------------------------------------------------------------------------


async def routed(database: Database, errors: list[str]) -> tuple[Telemetry, InMemorySpanExporter]:
    """A request that was held, waited, failed at some and was answered by the last."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = Telemetry(Ledger(database), {"dear": DEAR}, tracer_provider=provider)
    journey = Journey(cache="miss", team="t1", tags={"feature": "search"})
    with journey.span("hold", counters=3):
        pass
    with journey.span("queue"):
        pass
    for error in errors:
        failed = journey.attempt("cheap", "near.test")
        failed.error_code, failed.end = error, journey.now
    answered = journey.attempt("dear", "far.test")
    answered.first_token = answered.end = journey.now
    await record(telemetry, journey)
    await telemetry.close()
    return telemetry, exporter


async def test_stages_and_attempts_are_children_of_the_requests_span(database: Database) -> None:
    _, exporter = await routed(database, ["timeout"])
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"chat chat", "wootz.hold", "wootz.queue", "chat cheap", "chat dear"}
    whole = spans.pop("chat chat")
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == whole.context.span_id
        assert whole.start_time - 10**7 <= span.start_time <= span.end_time <= whole.end_time + 10**7
    assert spans["wootz.hold"].attributes == {"wootz.counters": 3}
    failed, answered = spans["chat cheap"], spans["chat dear"]
    assert (failed.kind, failed.status.status_code) == (SpanKind.CLIENT, StatusCode.ERROR)
    assert (failed.attributes or {})["error.type"] == "timeout"
    assert (answered.attributes or {})["gen_ai.provider.name"] == "far.test"
    names = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    for span in (whole, *spans.values()):
        assert {name for name in span.attributes or {} if name.startswith("gen_ai.")} <= names
    assert {"wootz.team.id": "t1", "wootz.tag.feature": "search", "wootz.cache": "miss"}.items() <= (
        whole.attributes or {}
    ).items()


async def test_no_token_is_told_of_twice(database: Database) -> None:
    _, exporter = await routed(database, ["timeout", "timeout"])
    told = [(span.attributes or {}).get("gen_ai.usage.input_tokens") for span in exporter.get_finished_spans()]
    assert [tokens for tokens in told if tokens is not None] == [4000]


def samples(telemetry: Telemetry) -> dict[str, float]:
    families = text_string_to_metric_families(telemetry.metrics_text().decode())
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in families
        for sample in family.samples
    }


async def test_attempts_retries_and_caches_are_counted(database: Database) -> None:
    telemetry, _ = await routed(database, ["timeout", "upstream_error"])
    found = samples(telemetry)
    assert found["wootz_attempts_total['cheap', 'near.test', 'timeout']"] == 1
    assert found["wootz_attempts_total['dear', 'far.test', 'ok']"] == 1
    assert found["wootz_retries_total['chat']"] == 2
    assert found["wootz_cache_requests_total['chat', 'miss']"] == 1
    assert found["wootz_queue_seconds_count['chat']"] == 1
    assert found["wootz_gateway_overhead_seconds_count[]"] == 1


async def test_breakers_are_numbers(telemetry: Telemetry) -> None:
    for state in ("closed", "half-open", "open"):
        telemetry.set_breaker(state, state)
    found = samples(telemetry)
    assert [found[f"wootz_breaker_state['{name}']"] for name in ("closed", "half-open", "open")] == [0, 1, 2]


async def test_error_codes_that_an_upstream_makes_up_are_few_time_series(database: Database) -> None:
    telemetry, _ = await routed(database, [f"made-up-{n}" for n in range(60)])
    found = [name for name in samples(telemetry) if name.startswith("wootz_attempts_total")]
    assert len(found) == 42  # 40 codes, ok, and other.
    assert samples(telemetry)["wootz_attempts_total['cheap', 'near.test', 'other']"] == 20
