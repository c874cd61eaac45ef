"""Reserve and settle, in this process and on a real Redis, against a model that remembers all requests and adds up."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis_server import RedisServer

from wootz.gateway.limits import Limits, MemoryCounters, Meter, RedisCounters, Subject
from wootz.gateway.limits import redis as redis_module
from wootz.gateway.limits.meters import WINDOW_SECONDS, Counters, Verdict

SUBJECT = Subject("key", "k", "k", Limits())
START = 4_000_000_000
DAY = 1000
"""Seconds of the period in these tests."""
UNIT = 333_333_333_333_333_333
"""Picodollars: twelve of them are no longer exact as a double, and still fit into 64 bits."""


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


def window(limit: int, amount: int, name: str = "tokens") -> Meter:
    return Meter(name, "window", SUBJECT, "tokens_per_minute", limit, amount)


def budget(limit: int, amount: int, now: float = START, name: str = "budget") -> Meter:
    start = int(now // DAY) * DAY
    return Meter(name, "period", SUBJECT, "budget_exceeded", limit, amount, start, start + DAY)


def at_once(limit: int, name: str = "open") -> Meter:
    return Meter(name, "open", SUBJECT, "concurrent_requests", limit, 1)


async def nothing(meter: Meter) -> int:
    return 0


class World:
    """Counters, and the clock that they go by."""

    def __init__(self, counters: Counters, set_clock) -> None:
        self.counters, self._set_clock = counters, set_clock
        self.set(START)

    def set(self, now: float) -> None:
        self.now = now
        self._set_clock(now)

    async def settle(self, id: str, used: list[tuple[Meter, int]]) -> None:
        if (waiting := self.counters.settle(id, used)) is not None:
            await waiting

    @classmethod
    def in_memory(cls) -> World:
        now = [0.0]
        return cls(MemoryCounters(clock=lambda: now[0], wall=lambda: now[0]), lambda to: now.__setitem__(0, to))

    @classmethod
    def on_redis(cls, server: RedisServer) -> World:
        """Its script reads a list in the place of the server's clock."""
        server.client.flushall()
        script = redis_module.SCRIPT.replace("redis.call('TIME')", "redis.call('LRANGE', 'clock', 0, 1)")

        def set_clock(now: float) -> None:
            server.client.delete("clock")
            server.client.rpush("clock", int(now), round(now % 1 * 1e6))

        return cls(RedisCounters(server.url, script=script), set_clock)


@dataclass
class Taken:
    at: float
    meters: list[Meter]
    used: list[int] | None = None
    given_back: bool = False
    """It had expired when somebody else took something; until then nothing is given back."""

    def counts(self, number: int) -> int:
        return self.meters[number].amount if self.used is None else self.used[number]


@dataclass
class Model:
    """Adds up all there ever was. Meters: a window, a budget, how many at once.

    What nobody renews is given back after ``expires`` seconds, except by rates, whose minute is over by then.
    """

    expires: float = math.inf
    taken: dict[str, Taken] = field(default_factory=dict)

    def total(self, number: int, meter: Meter, now: float) -> int:
        total = 0
        for one in self.taken.values():
            mine = one.meters[number]
            expired = one.used is None and now - one.at >= self.expires
            if meter.kind == "window":
                counts = math.ceil(one.at) + WINDOW_SECONDS > now
                if counts and one.used is not None and one.given_back:
                    total += mine.amount
                    continue
            elif meter.kind == "period":
                counts = mine.start == meter.start and not expired
            else:
                counts = one.used is None and not expired
            total += one.counts(number) if counts else 0
        return total

    @property
    def anything_expired(self) -> bool:
        return any(one.used is not None and one.given_back for one in self.taken.values())

    def admits(self, meters: list[Meter], now: float) -> bool:
        """What costs nothing goes in, whatever was overspent."""
        fits = (self.total(i, meter, now) + meter.amount <= meter.limit for i, meter in enumerate(meters))
        return all(fit or not meter.amount for fit, meter in zip(fits, meters, strict=True))


Step = tuple[str, float, int, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "settle"]),
        st.one_of(st.just(0.0), st.just(0.0), st.floats(0, 5), st.sampled_from([20.0, 59.0, 60.0, 61.0, 700.0])),
        st.integers(0, 6),
        st.integers(0, 6),
        st.integers(0, 100),
    ),
    max_size=25,
)


async def compare(world: World, steps: list[Step], expires: float = math.inf) -> None:
    model, running = Model(expires=expires), []
    try:
        for number, (what, wait, tokens, money, choice) in enumerate(steps):
            world.set(world.now + wait)
            if what == "take":
                meters = [window(10, tokens), budget(12 * UNIT, money * UNIT, world.now), at_once(6)]
                for one in model.taken.values():
                    one.given_back |= one.used is None and world.now - one.at >= expires
                verdict = await world.counters.reserve(f"r{number}", meters, nothing)
                assert (verdict.refused_by is None) == model.admits(meters, world.now)
                if verdict.refused_by is None:
                    model.taken[f"r{number}"] = Taken(world.now, meters)
                    running.append(f"r{number}")
            elif running:
                id = running.pop(choice % len(running))
                meters = model.taken[id].meters
                used = [min(tokens, meters[0].amount), min(money * UNIT, meters[1].amount), 0]
                for _ in range(1 + choice % 2):  # Twice is once.
                    await world.settle(id, list(zip(meters, used, strict=True)))
                model.taken[id].used = used
            for i, meter in enumerate([window(10, 0), budget(12 * UNIT, 0, world.now), at_once(6)]):
                assert model.total(i, meter, world.now) <= meter.limit or model.anything_expired
    finally:
        await world.counters.close()


@settings(max_examples=30, deadline=None)
@given(steps=STEPS)
def test_counters_in_memory_do_what_adding_everything_up_does(steps: list[Step]) -> None:
    asyncio.run(compare(World.in_memory(), steps))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
@example(steps=[("take", 1.5, 6, 0, 0), ("settle", 60.0, 0, 0, 0), ("take", 0.0, 6, 0, 0)])  # expired, unnoticed
def test_counters_on_redis_do_what_adding_everything_up_does(redis_server: RedisServer, steps: list[Step]) -> None:
    asyncio.run(compare(World.on_redis(redis_server), steps, redis_module.RESERVATION_SECONDS))


@pytest.fixture(params=["memory", "redis"])
async def world(request: pytest.FixtureRequest):
    world = World.in_memory()
    if request.param == "redis":
        world = World.on_redis(request.getfixturevalue("redis_server"))
    yield world
    await world.counters.close()


async def take(world: World, id: str, *meters: Meter, seed=nothing) -> Verdict:
    return await world.counters.reserve(id, meters, seed)


async def test_the_refusal_says_when_to_come_back_and_that_is_enough(world: World) -> None:
    await take(world, "a", window(10, 6))
    world.set(START + 20.25)
    await take(world, "b", window(10, 4))
    world.set(START + 50)
    for amount, wait in ((6, 10), (7, 31)):
        refused = await take(world, "c", window(10, amount))
        assert refused.refused_by is not None
        assert refused.retry_after == pytest.approx(wait)
    world.set(START + 60)
    assert (await take(world, "d", window(10, 6))).left == [0]
    assert (await take(world, "e", window(10, 1))).retry_after == pytest.approx(21)


async def test_all_or_nothing(world: World) -> None:
    assert (await take(world, "a", window(10, 3), at_once(1), budget(5, 5))).left == [7, 0, 0]
    refused = await take(world, "b", window(10, 3), at_once(2), budget(5, 1))
    assert refused.refused_by is not None
    assert refused.refused_by.kind == "period"
    assert (await take(world, "c", window(10, 7), at_once(2))).left == [0, 0]


async def test_money_is_exact_beyond_what_a_double_holds(world: World) -> None:
    limit = 3_999_999 * 10**12
    await take(world, "a", budget(limit, limit - 1))
    assert (await take(world, "b", budget(limit, 2))).refused_by is not None
    assert (await take(world, "c", budget(limit, 1))).refused_by is None
    assert (await take(world, "d", budget(limit, 1))).refused_by is not None
    await world.settle("a", [(budget(limit, limit - 1), limit - 2)])
    assert (await take(world, "e", budget(limit, 1))).refused_by is None
    assert (await take(world, "f", budget(limit, 1))).refused_by is not None


async def test_a_period_begins_as_what_the_ledger_says_once(world: World) -> None:
    asked: list[str] = []

    async def ledger(meter: Meter) -> int:
        asked.append(meter.name)
        await asyncio.sleep(0)
        return 90

    verdicts = await asyncio.gather(*(take(world, f"r{n}", budget(100, 2), seed=ledger) for n in range(9)))
    assert sum(verdict.refused_by is None for verdict in verdicts) == 5
    asked.clear()
    assert (await take(world, "later", budget(100, 2), seed=ledger)).refused_by is not None
    assert asked == []
    world.set(START + DAY)
    assert (await take(world, "next", budget(100, 10, START + DAY), seed=ledger)).refused_by is None
    assert asked == ["budget"]


async def test_what_is_only_held_may_be_asked_for_again_soon(world: World) -> None:
    await take(world, "a", budget(10, 8))
    assert (await take(world, "b", budget(10, 8))).retry_after == 1
    await world.settle("a", [(budget(10, 8), 8)])
    assert (await take(world, "c", budget(10, 8))).retry_after == DAY


async def test_an_answer_that_ends_in_the_next_period_is_counted_where_it_began(world: World) -> None:
    await take(world, "a", budget(10, 8))
    world.set(START + DAY)
    assert (await take(world, "b", budget(10, 10, START + DAY))).refused_by is None
    await world.settle("a", [(budget(10, 8), 8)])
    await world.settle("b", [(budget(10, 10, START + DAY), 0)])
    assert (await take(world, "c", budget(10, 10, START + DAY))).refused_by is None


async def test_a_clock_that_goes_ahead_and_comes_back_costs_nobody_a_budget(world: World) -> None:
    spent = {START: 0, START + DAY: 0}

    async def ledger(meter: Meter) -> int:
        return spent[meter.start]

    await take(world, "a", budget(10, 10), window(10, 10), seed=ledger)
    world.set(START + DAY)
    await take(world, "b", budget(10, 10, START + DAY), seed=ledger)
    await world.settle("b", [(budget(10, 10, START + DAY), 10)])
    spent[START + DAY] = 10
    world.set(START + 1)
    await world.settle("a", [(budget(10, 10), 10), (window(10, 10), 10)])
    spent[START] = 10
    assert (await take(world, "c", budget(10, 1), seed=ledger)).refused_by is not None
    assert (await take(world, "d", window(10, 1))).refused_by is not None
    world.set(START + DAY)
    assert (await take(world, "e", budget(10, 1, START + DAY), seed=ledger)).refused_by is not None


async def test_an_old_periods_request_settles_after_the_periods_were_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wootz.gateway.limits.memory.SWEEP_AT", 1)
    world = World.in_memory()
    meters = [budget(100, 5, world.now), at_once(6)]
    await world.counters.reserve("old", meters, nothing)
    world.set(world.now + DAY)
    await world.counters.reserve("new", [budget(100, 0, world.now)], nothing)  # Another day of the same budget,
    await world.settle("new", [(budget(100, 0, world.now), 0)])
    await world.counters.reserve("other", [budget(100, 1, world.now, name="other")], nothing)  # and it is swept.
    await world.settle("old", [(meters[0], 5), (meters[1], 0)])
    assert await world.counters.read([at_once(6)]) == [(0, 0)]
