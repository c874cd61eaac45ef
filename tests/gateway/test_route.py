"""Attempts: who is asked, when, how often, and what the user and the journey see of it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_house import HANG, Clock, Turns, question, route_over
from serving import until

from wootz.core import (
    BadRequestError,
    RateLimitError,
    UnavailableError,
    UnsupportedError,
    UpstreamError,
    WootzError,
    collect_chat,
)
from wootz.core.wire import ChatRequest, EmbeddingRequest, RerankRequest
from wootz.gateway.routing import Route
from wootz.gateway.routing.backoff import RESERVE, jittered
from wootz.gateway.routing.breaker import FAILURES, FIRST_PAUSE
from wootz.gateway.routing.latency import ENOUGH

DOWN = UpstreamError("down", code="upstream_error")


async def said(route: Route, request: ChatRequest | None = None) -> str | None:
    return (await collect_chat(route.chat(request or question()))).choices[0].message.content


def attempts(request: ChatRequest) -> list[tuple[str, str | None]]:
    return [(attempt.deployment, attempt.error_code) for attempt in request.journey.attempts]


async def hangs(model: Turns) -> None:
    async def is_hanging() -> bool:
        return model.hanging.is_set()

    await until(is_hanging)


async def test_a_failure_before_any_content_moves_on_to_the_next_at_once() -> None:
    clock, request = Clock(), question()
    route = route_over(Turns("a", [DOWN]), Turns("b", ["", DOWN]), Turns("c"), clock=clock)
    assert await said(route, request) == "I am c"
    assert attempts(request) == [("a", "upstream_error"), ("b", "upstream_error"), ("c", None)]
    assert clock.slept == []
    answer = request.journey.answered_by
    assert answer is not None
    assert (answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens) == (7, 2, 3)
    assert all(one.end is not None for one in request.journey.attempts)


async def test_after_content_there_is_no_other_model_and_no_second_beginning() -> None:
    other, request = Turns("b"), question()
    route = route_over(Turns("a", ["Hel", DOWN]), other)
    texts: list[str | None] = []

    async def listen() -> None:
        async for chunk in route.chat(request):
            texts.extend(choice.delta.content for choice in chunk.choices)

    with pytest.raises(UpstreamError, match="down"):
        await listen()
    assert texts == ["Hel"]
    assert other.asked == []
    assert attempts(request) == [("a", "upstream_error")]
    assert request.journey.attempts[0].completion_tokens == 1


async def test_an_answer_that_ends_without_its_usage_has_failed() -> None:
    class Cut(Turns):
        async def chat(self, request):  # type: ignore[override]
            async for chunk in super().chat(request):
                if chunk.usage is None:
                    yield chunk

    with pytest.raises(UpstreamError, match="broke off"):
        await said(route_over(Cut("a")))


async def test_rounds_wait_with_jitter_and_the_bad_request_is_not_repeated() -> None:
    clock, model = Clock(), Turns("a", [DOWN], [DOWN], ["late"])
    assert await said(route_over(model, clock=clock, retries=2)) == "late"
    assert len(clock.slept) == 2
    assert 0 <= clock.slept[0] <= 0.25
    assert 0 <= clock.slept[1] <= 0.5
    bad = Turns("a", [BadRequestError("no")])
    with pytest.raises(BadRequestError):
        await said(route_over(bad, Turns("b"), retries=2))
    assert len(bad.asked) == 1


@pytest.mark.parametrize("error", [UnsupportedError("no tools"), BadRequestError("", code="context_length_exceeded")])
async def test_what_one_model_cannot_do_another_is_asked_for(error: WootzError) -> None:
    weak = Turns("a", [error])
    assert await said(route_over(weak, Turns("b"))) == "I am b"
    with pytest.raises(BadRequestError):
        await said(route_over(weak, retries=3))
    assert len(weak.asked) == 2  # Once in each route.


async def test_retry_after_is_honoured_by_all_requests() -> None:
    clock, model = Clock(), Turns("a", [RateLimitError("slow down", retry_after=4)], ["now"])
    route = route_over(model, clock=clock)
    start = clock.now
    assert await said(route) == "now"
    assert 4 <= clock.now - start <= 4.25

    limited = Turns("a", [RateLimitError("slow down", retry_after=60)])
    route = route_over(limited, Turns("b"), clock=clock)
    for _ in range(3):
        assert await said(route) == "I am b"
    assert len(limited.asked) == 1

    route = route_over(Turns("a", [RateLimitError("slow down", retry_after=60)]), clock=clock)
    for _ in range(2):
        with pytest.raises(RateLimitError) as caught:
            await said(route)
        assert 59 < caught.value.retry_after <= 60


async def test_an_open_breaker_is_passed_over_and_probed_later() -> None:
    clock = Clock()
    sick = Turns("a", *[[DOWN]] * FAILURES, ["well again"])
    route = route_over(sick, Turns("b"), clock=clock)
    for _ in range(FAILURES + 3):
        assert await said(route) == "I am b"
    assert len(sick.asked) == FAILURES
    assert await route.ready()
    clock.now += FIRST_PAUSE
    assert await said(route) == "well again"
    assert route.deployments[0].breaker.state == "closed"

    alone = route_over(Turns("a", [DOWN]), clock=clock, retries=0)
    for _ in range(FAILURES):
        with pytest.raises(UpstreamError):
            await said(alone)
    with pytest.raises(UnavailableError):
        await said(alone)
    assert await alone.ready(), "an endpoint's failure takes no replica out of the balancer"


async def test_retries_cannot_multiply_the_load_of_an_endpoint_that_is_down() -> None:
    """The storm: a hundred requests with five retries each would be six hundred calls."""
    clock = Clock()
    model = Turns("a", [UnavailableError("restarting")])
    route = route_over(model, clock=clock, retries=5)
    route.deployments[0].breaker.failed = lambda: None  # type: ignore[method-assign]
    for _ in range(100):
        with pytest.raises(UnavailableError):
            await said(route)
    assert len(model.asked) <= 100 + RESERVE + 0.2 * 100 + 1


def test_jitter_is_full() -> None:
    from random import Random

    random = Random(1)
    for attempt in range(1, 12):
        waits = sorted(jittered(attempt, random) for _ in range(200))
        assert waits[0] < 0.1 * waits[-1]
        assert waits[-1] <= 8
        assert all(left < right for left, right in pairwise(waits))


async def test_silence_before_the_first_token_and_an_answer_without_end() -> None:
    slow, request = Turns("a", [HANG]), question()
    assert await said(route_over(slow, Turns("b"), first_token_seconds=0.02), request) == "I am b"
    assert attempts(request) == [("a", "first_token_timeout"), ("b", None)]
    assert slow.cancelled.is_set()

    endless, request = Turns("a", ["Hel", HANG]), question()
    with pytest.raises(UpstreamError) as caught:
        await said(route_over(endless, Turns("b"), total_seconds=0.03), request)
    assert caught.value.code == "total_timeout"
    assert attempts(request) == [("a", "total_timeout")]
    assert endless.cancelled.is_set()


async def test_who_goes_away_ends_the_work_and_leaves_no_trace_in_the_breaker() -> None:
    model, request = Turns("a", ["Hel", HANG]), question()
    route = route_over(model)
    async with aclosing(route.chat(request)) as chunks:
        async for _ in chunks:
            break
    assert attempts(request) == [("a", "cancelled")]
    assert route.deployments[0].in_flight == 0

    waiting = asyncio.create_task(said(route_over(silent := Turns("b", [HANG]))))
    await hangs(silent)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert silent.cancelled.is_set()


def warm(route: Route, seconds: float = 0.01) -> None:
    for _ in range(ENOUGH):
        route.deployments[0].latency.measure_first_token(seconds)


async def test_a_hedge_answers_once_and_the_loser_is_stopped_and_paid_for() -> None:
    slow, quick, request = Turns("a", [HANG]), Turns("b", ["quick ", "one"]), question()
    route = route_over(slow, quick, hedge=True)
    warm(route)
    assert await said(route, request) == "quick one"
    assert slow.cancelled.is_set()
    assert attempts(request) == [("a", "cancelled"), ("b", None)]
    lost, won = request.journey.attempts
    assert (lost.prompt_tokens, lost.completion_tokens) == (won.prompt_tokens, 0) == (7, 0)
    assert [deployment.in_flight for deployment in route.deployments] == [0, 0]


async def test_hedging_waits_for_measurements_and_for_the_time_they_tell() -> None:
    spare = Turns("b")
    route = route_over(Turns("a"), spare, hedge=True)
    assert await said(route) == "I am a"
    warm(route, 30.0)
    assert await said(route) == "I am a"
    assert spare.asked == []


async def test_both_of_a_race_failing_leaves_the_third_and_none_is_asked_twice() -> None:
    class Late(Turns):
        async def chat(self, request):  # type: ignore[override]
            await asyncio.sleep(0.05)
            async for chunk in super().chat(request):
                yield chunk

    first, second, third = Late("a", [DOWN]), Turns("b", [DOWN]), Turns("c")
    route = route_over(first, second, third, hedge=True)
    warm(route)
    request = question()
    assert await said(route, request) == "I am c"
    assert sorted(attempts(request)) == [("a", "upstream_error"), ("b", "upstream_error"), ("c", None)]


async def test_a_cancelled_race_stops_both() -> None:
    first, second = Turns("a", [HANG]), Turns("b", [HANG])
    route = route_over(first, second, hedge=True)
    warm(route)
    asking = asyncio.create_task(said(route))
    await hangs(first)
    await hangs(second)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert first.cancelled.is_set()
    assert second.cancelled.is_set()


PIECES = st.lists(
    st.sampled_from(["x", "y", "", DOWN, HANG, RateLimitError("slow"), BadRequestError("no")]), max_size=4
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(PIECES, min_size=1, max_size=2), min_size=1, max_size=3), st.booleans(), st.integers(0, 5))
def test_whatever_happens_an_answer_is_one_models_and_everything_is_let_go(
    turns: list[list[list[Any]]], hedge: bool, patience: int
) -> None:
    """Each model's words end with its own name, so that a mixed or doubled answer would show."""

    async def run() -> None:
        models = [
            Turns(
                name,
                *([*(f"{name}{one}" if isinstance(one, str) and one else one for one in turn), name] for turn in own),
            )
            for name, own in zip("abc", turns, strict=False)
        ]
        route, request = route_over(*models, hedge=hedge, first_token_seconds=0.01, total_seconds=0.03), question()
        if hedge:
            warm(route, 0.001)
        text, whole = "", False
        with suppress(WootzError):
            async with aclosing(route.chat(request)) as chunks:
                async for chunk in chunks:
                    text += "".join(choice.delta.content or "" for choice in chunk.choices)
                    whole = chunk.usage is not None
                    if len(text) > 2 * patience + 1:
                        break  # Some clients leave.
        authors = {letter for letter in text if letter in "abc"}
        assert len(authors) <= 1
        ended = [attempt for attempt in request.journey.attempts if attempt.end is not None]
        assert len(ended) == len(request.journey.attempts)
        answered = [attempt for attempt in ended if attempt.error_code is None]
        assert len(answered) == whole
        if whole:
            assert [answered[0].deployment] == list(authors)
            assert text.endswith(answered[0].deployment)
        assert all(deployment.in_flight == 0 for deployment in route.deployments)
        assert all(model.cancelled.is_set() for model in models if model.hanging.is_set())
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    asyncio.run(run())


async def test_whole_answers_take_the_same_way() -> None:
    route = route_over(Turns("a"), Turns("b"))
    with pytest.raises(UnsupportedError, match="embeddings"):
        await route.embed(EmbeddingRequest(model="way", input="x"))
    with pytest.raises(UnsupportedError):
        await route.rerank(RerankRequest(model="way", query="x", documents=["y"]))
    assert [deployment.in_flight for deployment in route.deployments] == [0, 0]


@pytest.mark.parametrize("script", [[TimeoutError()], [ValueError("a bug")], ["Hel", ValueError("a bug")]])
async def test_an_unforeseen_exception_is_not_tried_elsewhere_and_leaves_nothing_behind(script: list[Any]) -> None:
    route, request = route_over(Turns("a", script), Turns("b")), question()
    with pytest.raises(type(script[-1])):
        await said(route, request)
    assert attempts(request) == [("a", "internal_error")]
    assert route.deployments[0].in_flight == 0


async def test_routes_nest() -> None:
    from wootz.gateway.routing import Deployment, Target

    inner = route_over(Turns("a", [DOWN]), Turns("b"))
    outer = route_over(inner)
    deployment = Deployment(inner, Clock(), composed=True)
    outer.targets = {"way": Target(deployment=deployment)}
    request = question()
    assert await said(outer, request) == "I am b"
    assert attempts(request) == [("a", "upstream_error"), ("b", None)]
