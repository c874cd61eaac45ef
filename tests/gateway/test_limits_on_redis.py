"""Limits on a real Redis: four processes on one budget, Redis killed and started again, a process that dies."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from redis_server import RedisServer
from serving import ScriptedModel, until
from spender import PRICE

from wootz.core import Config, RateLimitError, UnavailableError
from wootz.core.sections import LimitsConfig
from wootz.core.wire import ChatRequest, new_id
from wootz.gateway import Gateway, Key, KeyStore
from wootz.gateway.limits import CountersUnavailable, Limits, MemoryCounters, Meter, RedisCounters, Subject
from wootz.gateway.limits import redis as redis_module
from wootz.store import Database
from wootz.telemetry import Ledger, Telemetry

SPENDER = Path(__file__).with_name("spender.py")


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    yield server
    server.kill()


def counter(server: RedisServer, key: Key) -> dict[str, str]:
    (name,) = server.client.keys(f"{redis_module.PREFIX}:c:key:{key.id}:budget*")  # type: ignore[misc]
    return server.client.hgetall(name)  # type: ignore[return-value]


async def spend(redis_server: RedisServer, database_url: str, num_requests: int, num_processes: int) -> None:
    """One budget for about half of what is asked; then the counter, the ledger and the budget are compared."""
    database = Database(database_url)
    await database.migrate()
    budget = Decimal(num_requests) * Decimal("0.00008")
    key, token = await KeyStore(database).create("shared", budget_usd=f"{budget:f}", budget_period="never")
    outcomes = Counter[str]()

    async def ask(number: int, seed: int, at_once: int) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(SPENDER), database_url, redis_server.url, token, str(number), str(seed), str(at_once),
            stdout=subprocess.PIPE,
        )  # fmt: skip
        said, _ = await process.communicate()
        assert process.returncode == 0
        outcomes.update(ast.literal_eval(said.decode()))

    await asyncio.gather(*(ask(num_requests // num_processes, seed, 500) for seed in range(num_processes)))
    # Who asks while others hold a part of the budget may be refused. One by one, the rest of it is spent.
    await ask(num_requests // 3, num_processes, 1)
    (report,) = await Ledger(database).report([])
    await database.close()
    state = counter(redis_server, key)
    assert outcomes.total() == report.requests == num_requests + num_requests // 3
    assert outcomes["budget_exceeded"] > num_requests // 10
    assert report.cost <= budget, "nobody used more than was held for it, so nothing was overspent"
    assert report.cost > budget * Decimal("0.9"), "and the budget could be spent"
    assert (int(state["total"]), state["held"]) == (int(report.cost * 10**12), "0")


async def test_two_processes_on_one_budget(redis_server: RedisServer, postgres_url: str) -> None:
    await spend(redis_server, postgres_url, 240, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_ten_thousand_requests_from_four_processes_on_one_budget(
    redis_server: RedisServer, postgres_url: str
) -> None:
    await spend(redis_server, postgres_url, 10_000, 4)


# --- when Redis goes ---------------------------------------------------------------------------------------------


class Front:
    """A gateway on Redis, and a key with a budget."""

    def __init__(self, database: Database, redis: RedisServer, **limits: str) -> None:
        self.keys, self.ledger = KeyStore(database), Ledger(database)
        telemetry = Telemetry(self.ledger, {"m": PRICE})
        config = Config(limits=LimitsConfig(redis=redis.url, **limits))  # type: ignore[arg-type]
        self.model = ScriptedModel("m", ["a"])
        self.gateway = Gateway(config, {"m": self.model}, self.keys, telemetry)

    async def ask(self, key: Key) -> str:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        request = ChatRequest.model_validate(body)
        try:
            async for _ in self.gateway.chat(key, request, request_id=new_id("req")):
                pass
        except (RateLimitError, UnavailableError) as error:
            return str(error.code)
        return "answered"

    async def answers(self, key: Key) -> bool:
        return await self.ask(key) == "answered"

    async def spent(self) -> int:
        (report,) = await self.ledger.report([])
        return int(report.cost * 10**12)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'wootz.db'}")
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(redis_module, "KEEP_SECONDS", 0.1)


async def test_a_redis_that_comes_back_with_an_old_snapshot_knows_what_the_ledger_knows(
    database: Database, redis_server: RedisServer
) -> None:
    front = Front(database, redis_server)
    key, _ = await front.keys.create("k", budget_usd="1", budget_period="monthly")
    assert await front.ask(key) == "answered"
    redis_server.snapshot()
    assert [await front.ask(key) for _ in range(3)] == ["answered"] * 3
    assert int(counter(redis_server, key)["total"]) == await front.spent()
    redis_server.kill()
    assert await front.ask(key) == "limits_unavailable"
    redis_server.start()
    assert await until(lambda: front.answers(key))
    state = counter(redis_server, key)
    assert (int(state["total"]), state["held"]) == (await front.spent(), "0")
    await front.gateway.limits.counters.close()


async def test_what_ends_while_redis_is_gone_is_settled_when_it_is_back(
    database: Database, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_module, "TIMEOUT_SECONDS", 0.2)
    front = Front(database, redis_server, budgets_without_redis="open")
    key, _ = await front.keys.create("k", budget_usd="1", budget_period="never", concurrent_requests=1)
    assert await front.ask(key) == "answered"
    redis_server.process.send_signal(19)  # SIGSTOP: it is there, and does not answer.
    assert await front.ask(key) == "answered", "the config lets it by"
    redis_server.process.send_signal(18)  # SIGCONT

    async def settled() -> bool:
        state = counter(redis_server, key)
        return (int(state["total"]), state["held"]) == (await front.spent(), "0")

    assert await until(settled)
    assert await until(lambda: front.answers(key))
    await front.gateway.limits.counters.close()


async def test_rates_are_not_checked_while_redis_is_gone_unless_the_config_says_so(
    database: Database, redis_server: RedisServer
) -> None:
    redis_server.kill()
    for policy, said in (("open", "answered"), ("closed", "limits_unavailable")):
        front = Front(database, redis_server, rates_without_redis=policy)
        key, _ = await front.keys.create(policy, requests_per_minute=1)
        assert [await front.ask(key) for _ in range(2)] == [said, said]
        await front.gateway.limits.counters.close()


async def test_what_a_dead_process_held_is_given_back_and_what_lives_is_renewed(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_module, "RESERVATION_SECONDS", 0.5)
    meter = Meter("open", "open", Subject("key", "k", "k", Limits()), "concurrent_requests", 1, 1)
    dead, living = RedisCounters(redis_server.url), RedisCounters(redis_server.url)

    async def nothing(_: Meter) -> int:
        return 0

    async def free() -> bool:
        return (await living.reserve(new_id("r"), [meter], nothing)).refused_by is None

    assert (await dead.reserve("dead", [meter], nothing)).refused_by is None
    assert not await free()
    assert dead._keeper is not None
    dead._keeper.cancel()
    assert await until(free)
    await asyncio.sleep(1)
    assert not await free(), "it was renewed"
    await living.close()


async def test_what_is_used_and_held_is_read_as_in_memory(redis_server: RedisServer) -> None:
    subject = Subject("key", "k", "k", Limits())
    meters = [
        Meter("open", "open", subject, "concurrent_requests", 5, 1),
        Meter("window", "window", subject, "tokens_per_minute", 100, 30),
        Meter("period", "period", subject, "budget_exceeded", 10**18, 2**60, 0, 0),
        Meter("unasked", "period", subject, "budget_exceeded", 10**18, 1, 0, 0),
    ]

    async def seven(_: Meter) -> int:
        return 7

    on_redis, in_memory = RedisCounters(redis_server.url), MemoryCounters()
    for counters in (on_redis, in_memory):
        for id in ("a", "b"):
            await counters.reserve(id, [msgspec.structs.replace(meter, limit=2**62) for meter in meters[:3]], seven)
        if (waiting := counters.settle("a", [(meters[0], 0), (meters[1], 4), (meters[2], 5)])) is not None:
            await waiting
        assert await counters.read(meters) == [(0, 1), (34, 0), (12, 2**60), None]
        await counters.close()


async def test_a_redis_that_is_none_is_said_once_and_plainly(tmp_path: Path) -> None:
    counters = RedisCounters(f"unix://{tmp_path / 'nobody'}")
    with pytest.raises(CountersUnavailable) as refusal:
        await counters.reserve("r", [], lambda _: asyncio.sleep(0, 0))
    assert (refusal.value.status, refusal.value.code) == (503, "limits_unavailable")
    await counters.close()
