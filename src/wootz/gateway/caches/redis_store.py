"""Answers on a Redis or Valkey that all HTTP processes share.

The bound in bytes is our own, so that counters on the same server are never evicted for answers: one script adds an
answer and takes the least recently used ones away. An answer that expired by itself is counted until it is
the least recently used, or is looked up in vain. A server out of reach is a miss, and is left alone for a moment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from wootz.core import ConfigError, MissingExtraError, UnavailableError
from wootz.gateway.caches.store import ENTRY_OVERHEAD_BYTES, Found, Size

log = logging.getLogger(__name__)

PREFIX = b"wootz:{caches}:2:"
"""The number is that of what an entry holds."""
TIMEOUT_SECONDS = 0.25
"""A cache that takes longer than that saves nobody time."""
RETRY_SECONDS = 2.0

Result = TypeVar("Result")

PUT = """
local answer, order, sizes, total = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local name, size, most = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
local now = redis.call('TIME')
local held = tonumber(redis.call('HGET', sizes, name) or 0)
redis.call('SET', answer, ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', order, now[1] * 1000 + math.floor(now[2] / 1000), name)
redis.call('HSET', sizes, name, size)
local bytes = redis.call('INCRBY', total, size - held)
while bytes > most do
  local oldest = redis.call('ZPOPMIN', order)
  if #oldest == 0 then redis.call('SET', total, 0) break end
  redis.call('UNLINK', ARGV[6] .. oldest[1])
  bytes = redis.call('DECRBY', total, tonumber(redis.call('HGET', sizes, oldest[1]) or 0))
  redis.call('HDEL', sizes, oldest[1])
end
"""
FORGET = """
for _, name in ipairs(ARGV) do
  if _ > 1 then
    redis.call('UNLINK', ARGV[1] .. name)
    redis.call('ZREM', KEYS[1], name)
    redis.call('DECRBY', KEYS[3], tonumber(redis.call('HGET', KEYS[2], name) or 0))
    redis.call('HDEL', KEYS[2], name)
  end
end
"""


class RedisStore:
    """Raises `ConfigError` for a bad URL, `MissingExtraError` without the extra ``redis``."""

    def __init__(self, url: str, max_bytes: int, *, prefix: bytes = PREFIX) -> None:
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import RedisError
        except ModuleNotFoundError as error:
            raise MissingExtraError("gateway.caches", "redis", str(error.name)) from None
        self.max_bytes = max_bytes
        self.faults = (RedisError, OSError, TimeoutError)
        self._prefix = prefix
        self._books = [prefix + name for name in (b"order", b"sizes", b"total")]
        self._rest_until = 0.0
        try:
            self._redis: Any = Redis.from_url(
                url,
                socket_timeout=TIMEOUT_SECONDS,
                socket_connect_timeout=TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:
            hint = "write redis://HOST:PORT/0, rediss://… or unix://PATH"
            raise ConfigError("caches.redis is no URL of a Redis server", hint=hint) from None
        self._put, self._forget = self._redis.register_script(PUT), self._redis.register_script(FORGET)

    async def get(self, key: bytes) -> Found | None:
        return (await self.get_many([key]))[0]

    async def get_many(self, keys: Sequence[bytes]) -> list[Found | None]:
        names = [key.hex().encode() for key in keys]

        async def look_up() -> list[bytes | None]:
            answers = await self._redis.mget([self._prefix + name for name in names])
            now = time.time() * 1000
            if used := {name: now for name, answer in zip(names, answers, strict=True) if answer is not None}:
                await self._redis.zadd(self._books[0], used, xx=True)
            return answers

        return [_found(answer) if answer else None for answer in await self._or_none(look_up) or [None] * len(keys)]

    async def put(self, key: bytes, body: bytes, ttl: float, *, model: str, tenant: str, user: str = "") -> None:
        name = key.hex().encode()
        answer = msgspec.msgpack.encode((time.time(), model, tenant, user, body))
        size = len(answer) + ENTRY_OVERHEAD_BYTES
        arguments = [name, answer, max(1, int(ttl * 1000)), size, self.max_bytes, self._prefix]
        await self._or_none(lambda: self._put([self._prefix + name, *self._books], arguments))

    async def purge(self, *, model: str | None = None, tenant: str | None = None, user: str | None = None) -> int:
        """Raises `UnavailableError`: who purges must know whether it was done."""
        try:
            return await self._purge(model, tenant, user)
        except self.faults as error:
            raise UnavailableError(f"caches: Redis is out of reach ({type(error).__name__})") from None

    async def _purge(self, model: str | None, tenant: str | None, user: str | None) -> int:
        doomed = []
        async for name, _ in self._redis.zscan_iter(self._books[0]):
            if model is None and tenant is None and user is None:
                doomed.append(name)
            elif answer := await self._redis.get(self._prefix + name):
                _, of_model, of_tenant, of_user, _ = msgspec.msgpack.decode(answer)
                if model in (None, of_model) and tenant in (None, of_tenant) and user in (None, of_user):
                    doomed.append(name)
        if doomed:
            await self._forget(self._books, [self._prefix, *doomed])
        return len(doomed)

    async def size(self) -> Size:
        entries = await self._or_none(lambda: self._redis.zcard(self._books[0]))
        return Size(int(entries or 0), int(await self._or_none(lambda: self._redis.get(self._books[2])) or 0))

    async def close(self) -> None:
        await self._redis.aclose()

    async def _or_none(self, call: Callable[[], Awaitable[Result]]) -> Result | None:
        if time.monotonic() < self._rest_until:
            return None
        try:
            return await call()
        except self.faults as error:
            self._rest_until = time.monotonic() + RETRY_SECONDS
            log.warning("caches: Redis does not answer (%s); every request is a miss meanwhile", type(error).__name__)
            return None


def _found(answer: bytes) -> Found:
    kept_at, _, _, _, body = msgspec.msgpack.decode(answer)
    return Found(body, max(0.0, time.time() - kept_at))
