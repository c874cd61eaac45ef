"""N equal requests under way make one call, whoever comes, fails or goes away; and it is paid exactly once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from decimal import Decimal

import httpx
import pytest
from caches_on import ASK, CHAT, switch_on
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import GatewayServer, ScriptedModel, until

from wootz.core import UpstreamError
from wootz.core.wire import ChatChunk, ChatRequest, ChunkChoice, Delta, Usage
from wootz.gateway.caches.flight import Flight


class Gate(ScriptedModel):
    """Says its first word, then waits until it is opened."""

    def __init__(self) -> None:
        super().__init__("scripted", ["first ", "second"])
        self.open = asyncio.Event()
        self.given_up = 0

    async def _play(self, request: object) -> AsyncGenerator[str, None]:
        self.asked.append(request)  # type: ignore[arg-type]
        request.journey.attempt("scripted", "script")  # type: ignore[attr-defined]
        try:
            for line in self.script:
                if isinstance(line, Exception):
                    raise line
                yield line
                await self.open.wait()
        except (GeneratorExit, asyncio.CancelledError):
            self.given_up += 1
            raise


@pytest.fixture
def gate(server: GatewayServer) -> Gate:
    gate = Gate()
    switch_on(server, {"exact": {"enabled": True}}, scripted=gate)
    return gate


async def ask(client: httpx.AsyncClient, stream: bool = True) -> httpx.Response:
    return await client.post(CHAT, json={**ASK, "stream": stream})


async def test_many_equal_requests_make_one_call(server: GatewayServer, gate: Gate) -> None:
    headers = {"authorization": f"Bearer {server.key}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as client:
        asking = [asyncio.create_task(ask(client, stream=bool(number % 2))) for number in range(20)]
        caches = server.gateway.caches
        await until(lambda: _aboard(caches, 20))
        server.loop.call_soon_threadsafe(gate.open.set)
        answers = await asyncio.gather(*asking)
    assert len(gate.asked) == 1
    said = [answer.headers["x-wootz-cache"] for answer in answers]
    assert sorted(said) == ["miss"] + ["shared"] * 19
    assert len({answer.text for answer in answers}) == 2, "one text streamed, one whole"
    records = [server.call(server.ledger.get(answer.headers["x-request-id"])) for answer in answers]
    assert sum(record.cost for record in records) == Decimal("0.013"), "paid once"
    assert all(record.completion_tokens == 3 for record in records)


async def _aboard(caches: object, number: int) -> bool:
    return sum(len(flight._aboard) for flight in caches._flights.values()) == number  # type: ignore[attr-defined]


async def test_the_first_one_going_away_takes_nobody_with_it(server: GatewayServer, gate: Gate) -> None:
    headers = {"authorization": f"Bearer {server.key}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as client:
        caches = server.gateway.caches
        request = client.build_request("POST", CHAT, json={**ASK, "stream": True}, headers={"x-request-id": "leader"})
        leader = await client.send(request, stream=True)
        await until(lambda: _aboard(caches, 1))
        follower = asyncio.create_task(ask(client))
        await until(lambda: _aboard(caches, 2))
        await leader.aclose()
        await until(lambda: _aboard(caches, 1))
        server.loop.call_soon_threadsafe(gate.open.set)
        answer = await follower
    assert "second" in answer.text
    assert gate.given_up == 0
    left = server.wait_for_record("leader")
    paid = server.call(server.ledger.get(answer.headers["x-request-id"]))
    assert (left.status, left.cost) == (499, 0), "who left is not charged beside who stayed"
    assert (paid.status, paid.cost) == (200, Decimal("0.013"))


async def test_the_last_one_going_away_ends_the_call_and_nothing_is_kept(server: GatewayServer, gate: Gate) -> None:
    headers = {"authorization": f"Bearer {server.key}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as client:
        request = client.build_request("POST", CHAT, json={**ASK, "stream": True})
        for _ in range(2):
            answer = await client.send(request, stream=True)
            await answer.aclose()
        await until(lambda: _all_gone(gate))
        assert (await server.gateway.caches.store.size()).entries == 0


async def _all_gone(gate: Gate) -> bool:
    return gate.given_up == len(gate.asked) > 0


async def test_a_failure_is_everybodys_and_not_the_next_ones(server: GatewayServer, gate: Gate) -> None:
    gate.script = ["first ", UpstreamError("it broke")]
    headers = {"authorization": f"Bearer {server.key}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as client:
        asking = [asyncio.create_task(ask(client, stream=False)) for _ in range(3)]
        await until(lambda: _aboard(server.gateway.caches, 3))
        server.loop.call_soon_threadsafe(gate.open.set)
        assert {answer.status_code for answer in await asyncio.gather(*asking)} == {502}
        gate.script = ["fine"]
        assert (await ask(client, stream=False)).status_code == 200


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), passengers=st.integers(1, 6), length=st.integers(0, 5), fails=st.booleans())
async def test_whoever_comes_and_goes_everybody_who_stays_gets_all_and_one_pays(
    seed: int, passengers: int, length: int, fails: bool
) -> None:
    dice = random.Random(seed)
    made: list[ChatRequest] = []

    async def answer(request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        made.append(request)
        request.journey.attempt("there", "script")
        for number in range(length):
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            yield ChatChunk(id=str(number), model="m", choices=[ChunkChoice(delta=Delta(content="x"))])
        if fails:
            raise UpstreamError("broken")
        yield ChatChunk(id="usage", model="m", choices=[], usage=Usage())

    async def landed(chunks: list[ChatChunk]) -> None:
        kept.append(len(chunks))

    kept: list[int] = []
    requests = [ChatRequest(model="m", messages=[{"role": "user", "content": "hi"}]) for _ in range(passengers)]  # type: ignore[list-item]
    flight = Flight(requests[0], answer, landed)

    async def passenger(request: ChatRequest, leaves_after: int | None) -> int | str:
        num_chunks = 0
        if flight.given_up:
            return "late"
        async with aclosing(flight.ride(request.journey)) as chunks:
            try:
                async for _ in chunks:
                    num_chunks += 1
                    if leaves_after == num_chunks:
                        return "left"
            except UpstreamError:
                return "failed"
        return num_chunks

    leaving = [dice.choice([None, None, 1, 2]) for _ in requests]
    ended = await asyncio.gather(*(passenger(r, leave) for r, leave in zip(requests, leaving, strict=True)))
    await asyncio.wait([flight._task])
    whole = "failed" if fails else length + 1
    for result, leave in zip(ended, leaving, strict=True):
        assert result == whole or result == "late" or (leave is not None and result == "left")
    paying = [request.journey for request in requests if request.journey.cache == "miss"]
    assert len(paying) == 1
    assert all(request.journey.cache in ("miss", "shared", "off") for request in requests)
    assert len(made) == len(paying[0].attempts) == 1
    assert kept in ([], [length + 1])
    if whole in ended:
        assert kept == ([] if fails else [length + 1])
