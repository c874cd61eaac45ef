"""Waits on 429: by the official client against a server that says no, and by property over what servers may say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wootz.providers import PatientTransport, patient_client

Answer = Callable[[httpx.Request], httpx.Response]
ANSWER = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "at last"}}],
}  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


def transport(answer: Answer, clock: Clock, **options: float) -> PatientTransport:
    attempts, patience = int(options.pop("attempts", 6)), options.pop("patience", 60.0)
    under = httpx.MockTransport(answer)
    return PatientTransport(under, attempts=attempts, patience=patience, sleep=clock.sleep, draw=lambda low, high: high)


async def test_the_official_client_waits_longer_each_time_and_then_has_its_answer() -> None:
    clock, bodies = Clock(), []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        return httpx.Response(429, json={"error": {}}) if len(bodies) < 5 else httpx.Response(200, json=ANSWER)

    http = httpx.AsyncClient(transport=transport(answer, clock))
    async with openai.AsyncOpenAI(base_url="http://gateway/v1", api_key="k", http_client=http, max_retries=0) as client:
        said = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert said.choices[0].message.content == "at last"
    assert clock.waits == [0.5, 1.0, 2.0, 4.0]
    assert len(set(bodies)) == 1, "the same request each time"


async def test_a_gateway_that_says_when_is_not_asked_before() -> None:
    clock, answers = Clock(), iter([httpx.Response(429, headers={"retry-after": "17"}), httpx.Response(200)])
    async with httpx.AsyncClient(transport=transport(lambda _: next(answers), clock)) as client:
        assert (await client.get("http://gateway/")).status_code == 200
    assert clock.waits == [17.5]


async def test_a_budget_that_begins_anew_tomorrow_is_told_at_once() -> None:
    clock, asked = Clock(), []
    refusal = httpx.Response(429, headers={"retry-after": "86400"})
    async with httpx.AsyncClient(transport=transport(lambda r: asked.append(r) or refusal, clock)) as client:
        assert (await client.get("http://gateway/")).status_code == 429
    assert (len(asked), clock.waits) == (1, [])


@pytest.mark.parametrize("failure", [httpx.Response(500), httpx.Response(502), httpx.ReadTimeout("slow")])
async def test_what_may_have_begun_is_not_begun_again(failure: httpx.Response | Exception) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if isinstance(failure, Exception):
            raise failure
        return failure

    async with httpx.AsyncClient(transport=transport(answer, Clock())) as client:
        with contextlib.suppress(httpx.ReadTimeout):
            await client.post("http://gateway/", content=b"once")
    assert len(asked) == 1


async def test_nobody_there_is_tried_again_and_then_said() -> None:
    clock = Clock()

    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody", request=request)

    async with httpx.AsyncClient(transport=transport(nobody, clock, attempts=3)) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://gateway/")
    assert clock.waits == [0.5, 1.0]


says = st.tuples(st.sampled_from([429, 503]), st.none() | st.integers(0, 100).map(str) | st.just("soon"))


@given(st.lists(says, max_size=12), st.integers(1, 8), st.floats(0, 100))
def test_attempts_and_patience_are_bounds(
    answers: list[tuple[int, str | None]], attempts: int, patience: float
) -> None:
    clock, asked = Clock(), []
    replies = iter(answers)

    def answer(_: httpx.Request) -> httpx.Response:
        status, wait = next(replies, (200, None))
        asked.append(wait)
        return httpx.Response(status, headers={} if wait is None else {"retry-after": wait})

    async def ask() -> None:
        async with httpx.AsyncClient(
            transport=transport(answer, clock, attempts=attempts, patience=patience)
        ) as client:
            await client.get("http://gateway/")

    asyncio.run(ask())
    assert len(asked) <= attempts
    assert sum(clock.waits) <= patience
    for told, waited in zip(asked, clock.waits, strict=False):
        assert waited >= (float(told) if told and told.isdigit() else 0)


async def test_a_whole_client() -> None:
    async with patient_client(attempts=1) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://127.0.0.1:9/")
