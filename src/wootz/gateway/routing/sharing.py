"""HTTP processes tell each other over Redis how deployments do: one that found an endpoint broken spares the others
finding out for themselves.

Told are what happened to a breaker (it opened, it closed), a Retry-After, and the means of what was measured since the
last time. Every `SECONDS` a process reads what others told, and its own news go out at once. A request never waits for
any of it, and while Redis is gone each process goes on with what it knows by itself.

All is in one hash: a field for each deployment and kind of news, with who told it. Times are seconds to go at the
moment of Redis's clock that stands beside them, so processes need not agree on the time.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from wootz.core import Config, ConfigError, LanguageModel, MissingExtraError, resolve_secret
from wootz.core.secrets import SECRET_SCHEMES
from wootz.gateway.caches.keys import fingerprint
from wootz.gateway.routing.deployment import Deployment
from wootz.gateway.routing.route import Route
from wootz.providers.cascade import Cascade

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

SECONDS = 0.25
TIMEOUT_SECONDS = 1.0
RETRY_SECONDS = 1.0
FORGET_SECONDS = 60.0
KEEP_SECONDS = 3600
"""A hash that nobody writes to for so long is forgotten: a config that is no more."""

News = dict[str, list[Any]]
"""What is told, by ``kind:deployment``."""


class Sharing:
    """``house`` sets those apart whose deployments are not the same."""

    def __init__(self, url: str, house: str, deployments: Iterable[Deployment]) -> None:
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ModuleNotFoundError as error:
            raise MissingExtraError("gateway.routing", "redis", str(error.name)) from None
        self._faults = (RedisError, OSError, TimeoutError)
        try:
            self._redis: Redis = Redis.from_url(
                url,
                socket_timeout=TIMEOUT_SECONDS,
                socket_connect_timeout=TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:
            raise ConfigError("limits.redis or caches.redis is no URL of a Redis server") from None
        self._hash = f"wootz:{{routing}}:{house}"
        self._me = secrets.token_hex(8)
        self._deployments = {one.name: one for one in deployments}
        self._told = {name: self._turns(one) for name, one in self._deployments.items()}
        self._heard: dict[bytes, bytes] = {}
        self._untold: set[str] = set()
        """What changed and was not told yet, as ``kind:deployment``: how it stands is read when it is told."""

    @classmethod
    def of(cls, config: Config, models: Mapping[str, LanguageModel]) -> Sharing | None:
        """On the Redis of the limits, or else of the caches; None without one, or without routes."""
        url, deployments = config.limits.redis or config.caches.redis, list(_deployments(models.values()))
        if url is None or not deployments:
            return None
        url = resolve_secret(url, used_by="limits.redis") if url.startswith(SECRET_SCHEMES) else url
        return cls(url, fingerprint(config)[:16], deployments)

    async def run(self) -> None:
        """Until it is cancelled, also where whoever was waited for kept that to itself."""
        is_gone, here = False, asyncio.current_task()
        assert here is not None
        try:
            while not here.cancelling():
                try:
                    await self.exchange()
                    is_gone = False
                except self._faults as error:
                    if not is_gone:
                        log.warning(
                            "routing: Redis does not answer (%s); breakers are not shared", type(error).__name__
                        )
                    is_gone = True
                except Exception:
                    log.exception("routing: what others told could not be read")
                await asyncio.sleep(RETRY_SECONDS if is_gone else SECONDS)
        finally:
            await self._redis.aclose()

    async def exchange(self) -> None:
        """Read what others told, then tell what is new. Raises what Redis raises; what was measured before it did is
        then told to nobody."""
        self._note_turns()
        measured = self._measured()
        async with self._redis.pipeline(transaction=True) as both:
            both.time()
            both.hgetall(self._hash)
            (seconds, microseconds), told = await both.execute()
        now = seconds + microseconds / 1e6
        for field, said in told.items():
            if self._heard.get(field) != said:
                self._heard[field] = said
                self._hear(field.decode(), msgspec.json.decode(said), now)
        gone = [field for field in told if self._is_of_the_dead(field, now)]
        news = {field: self._state(field) for field in self._untold} | measured
        if news or gone:
            async with self._redis.pipeline(transaction=True) as both:
                if gone:
                    both.hdel(self._hash, *gone)  # type: ignore[arg-type]
                if news:
                    out = {field: msgspec.json.encode([self._me, now, *said]) for field, said in news.items()}
                    both.hset(self._hash, mapping=out)  # type: ignore[arg-type]
                both.expire(self._hash, KEEP_SECONDS)
                await both.execute()
            self._untold = set()
            for field in gone:
                del self._heard[field]

    def _is_of_the_dead(self, field: bytes, now: float) -> bool:
        """Measured by a process that has told nothing since, and is probably no more."""
        return field.startswith(b"latency:") and now - msgspec.json.decode(self._heard[field])[1] > FORGET_SECONDS

    def _note_turns(self) -> None:
        for name, deployment in self._deployments.items():
            turns = self._turns(deployment)
            for kind, now, before in zip(("breaker", "rest"), turns, self._told[name], strict=True):
                if now != before:
                    self._untold.add(f"{kind}:{name}")
            self._told[name] = turns

    def _state(self, field: str) -> list[Any]:
        kind, _, name = field.partition(":")
        deployment = self._deployments[name]
        if kind == "breaker":
            return [deployment.breaker.pause, deployment.breaker.opens_in]
        return list(deployment.rest)

    def _measured(self) -> News:
        means = {f"latency:{self._me}:{name}": [*one.latency.news()] for name, one in self._deployments.items()}
        return {field: both for field, both in means.items() if both != [None, None]}

    def _hear(self, field: str, said: list[Any], now: float) -> None:
        teller, at, *values = said
        kind, _, name = field.partition(":")
        age = max(0.0, now - at)
        if kind == "latency":
            name = name.partition(":")[2]
        if teller == self._me or (deployment := self._deployments.get(name)) is None:
            return
        if kind == "breaker" and field not in self._untold:
            deployment.breaker.adopt(values[0], values[1] - age)
        elif kind == "rest":
            deployment.adopt_rest(values[0] - age, over_limit=values[1])
        elif kind == "latency" and age < 10 * SECONDS:
            deployment.latency.hear(*values)

    @staticmethod
    def _turns(deployment: Deployment) -> tuple[int, int]:
        return deployment.breaker.num_turns, deployment.num_rests


def _deployments(models: Iterable[LanguageModel]) -> Iterable[Deployment]:
    for model in models:
        if isinstance(model, Route):
            yield from model.deployments
        elif isinstance(model, Cascade):
            yield from _deployments(model.models)
