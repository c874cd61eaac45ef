"""Counters on a Redis or Valkey that all HTTP processes share; one round trip to reserve, one to settle.

The script (`counters.lua`) is atomic, exact in whole picodollars, and goes by the server's clock. What can go wrong:

- *Redis is gone*: `reserve` raises `CountersUnavailable` (the limiter decides what then holds); what could not be
  settled is kept and settled when Redis is back. Settling twice counts once; and what a period has that was begun
  anew meanwhile, from a ledger which knew the request, is not added again.
- *Redis was restarted*: the script's first line names the run of the server, so a new run does not know the script. It
  is loaded again, and every period begins anew as the ledger's sum, whatever an old snapshot says.
- *This process dies*: what it held expires after `RESERVATION_SECONDS`. Living requests are renewed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from wootz.core import ConfigError, MissingExtraError
from wootz.gateway.limits.meters import CountersUnavailable, Meter, Seed, Verdict

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

RESERVATION_SECONDS = 60
KEEP_SECONDS = 15.0
"""How often reservations are renewed."""
RETRY_SECONDS = 1.0
"""How long a Redis that did not answer is left alone."""
TIMEOUT_SECONDS = 2.0
MAX_CONNECTIONS = 32
PREFIX = "wootz:{limits}"
SCRIPT = files("wootz.gateway.limits").joinpath("counters.lua").read_text()


class RedisCounters:
    """Raises `ConfigError` for a bad URL, `MissingExtraError` without the extra ``redis``."""

    outlasts_us = True

    def __init__(self, url: str, *, prefix: str = PREFIX, script: str = SCRIPT) -> None:
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import NoScriptError, RedisError
        except ModuleNotFoundError as error:
            raise MissingExtraError("gateway.limits", "redis", str(error.name)) from None
        self._faults, self._no_script = (RedisError, OSError, TimeoutError), NoScriptError
        try:
            pool = BlockingConnectionPool.from_url(
                url, max_connections=MAX_CONNECTIONS, timeout=30, socket_timeout=TIMEOUT_SECONDS,
                socket_connect_timeout=TIMEOUT_SECONDS, decode_responses=True,
            )  # fmt: skip
        except ValueError:
            raise ConfigError(
                "limits.redis is no URL of a Redis server", hint="write redis://HOST:PORT/0, rediss://… or unix://PATH"
            ) from None
        # One more try at once, for a pooled connection that had been closed. Both calls may be repeated.
        self._redis: Redis = Redis(connection_pool=pool, retry=Retry(NoBackoff(), 1))
        self._prefix, self._script, self._sha = prefix, script, ""
        self._down_until = 0.0
        self._held: dict[str, tuple[float, Sequence[Meter]]] = {}
        self._unsettled: dict[str, tuple[float, list[Any]]] = {}
        self._keeper: asyncio.Task[None] | None = None

    async def reserve(self, id: str, meters: Sequence[Meter], seed: Seed) -> Verdict:
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="limits keeper")
        seeds: dict[int, int] = {}
        while True:
            # Whoever is interrupted here may have reserved without knowing; nobody renews that, so it expires.
            status, *rest = await self._run("reserve", id, RESERVATION_SECONDS, 0, *_arguments(meters, seeds))
            if status == "ok":
                self._held[id] = (time.monotonic(), meters)
                return Verdict(left=[int(left) for left in rest])
            if status == "refused":
                return Verdict(refused_by=meters[int(rest[0]) - 1], retry_after=float(rest[1]))
            for number in rest:
                seeds[int(number) - 1] = await seed(meters[int(number) - 1])

    async def settle(self, id: str, used: Sequence[tuple[Meter, int]]) -> None:
        self._held.pop(id, None)
        arguments = [part for meter, amount in used for part in meter.settlement(amount)]
        try:
            await self._run("settle", id, 0, *arguments)
        except CountersUnavailable:
            self._unsettled[id] = (time.monotonic(), arguments)

    async def settle_late(self, id: str, ago: float, settlement: list[Any]) -> None:
        await self._run("settle", id, f"{ago:.3f}", *settlement)

    async def read(self, meters: Sequence[Meter]) -> list[tuple[int, int] | None]:
        arguments = [part for meter in meters for part in (meter.kind, meter.name, meter.start)]
        said = await self._run("read", "", *arguments)
        pairs = zip(meters, said[::2], said[1::2], strict=True)
        return [
            None if total == "" else (int(total) - int(held), int(held)) if meter.kind == "period"
            else (int(total), int(held))
            for meter, total, held in pairs
        ]  # fmt: skip

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        with suppress(CountersUnavailable):
            await self._settle_late()
        if self._unsettled:
            log.error("limits: Redis is gone, and %d requests were not settled there", len(self._unsettled))
        await self._redis.aclose()

    # --- the server -----------------------------------------------------------------------------------------------

    async def _run(self, *arguments: str | int) -> Any:
        if time.monotonic() < self._down_until:
            raise CountersUnavailable("the limits' Redis is out of reach")
        try:
            if not self._sha:
                await self._load()
            try:
                return await self._redis.evalsha(self._sha, 1, self._prefix, *arguments)  # type: ignore[misc]
            except self._no_script:
                await self._load()
                return await self._redis.evalsha(self._sha, 1, self._prefix, *arguments)  # type: ignore[misc]
        except self._faults as error:
            if time.monotonic() >= self._down_until:
                log.warning("limits: Redis is out of reach: %s", type(error).__name__)
            self._down_until = time.monotonic() + RETRY_SECONDS
            raise CountersUnavailable("the limits' Redis is out of reach") from error

    async def _load(self) -> None:
        run: dict[str, Any] = await self._redis.info("server")
        self._sha = await self._redis.script_load(f"local EPOCH = '{run['run_id']}'\n{self._script}")

    async def _keep(self) -> None:
        """Renew what lives on, and settle what could not be settled."""
        while True:
            await asyncio.sleep(RETRY_SECONDS if self._unsettled else KEEP_SECONDS)
            with suppress(CountersUnavailable):
                await self._settle_late()
                for id, (since, meters) in list(self._held.items()):
                    if id in self._held and time.monotonic() - since > KEEP_SECONDS / 2:
                        await self._run("reserve", id, RESERVATION_SECONDS, 1, *_arguments(meters, {}))

    async def _settle_late(self) -> None:
        for id, (since, arguments) in list(self._unsettled.items()):
            await self._run("settle", id, f"{time.monotonic() - since:.3f}", *arguments)
            del self._unsettled[id]


def _arguments(meters: Sequence[Meter], seeds: dict[int, int]) -> list[str | int]:
    return [
        part
        for number, meter in enumerate(meters)
        for part in (
            meter.kind, meter.name, meter.limit, meter.amount, meter.start, meter.end, seeds.get(number, ""),
        )
    ]  # fmt: skip
