"""The watch over alerts, put together: rules, who is told, who can do something, and how this process's part stands."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from wootz.core import Config, ConfigError, WootzError, resolve_secret
from wootz.core.wire import new_id
from wootz.gateway import Gateway
from wootz.gateway.incident_actions import FailOver, LimitCaller, RollBack, hold_deployments
from wootz.gateway.migration.controller import Controller
from wootz.gateway.routing import Route
from wootz.providers.public_addresses import PublicResolver, is_private_literal
from wootz.providers.retirements import SOON, affected
from wootz.store.audit import AuditLog
from wootz.store.secrets import open_local
from wootz.telemetry.alerts import Links, Messenger, Receiver, Watch, secret_bytes
from wootz.telemetry.alerts.actions import Actor
from wootz.telemetry.signals import Signals
from wootz.telemetry.works import at_work

log = logging.getLogger(__name__)

POST_SECONDS = 10.0
AGES_EVERY = 600.0
"""Seconds between looks at what changes by the day."""
SHORTEST_SECRET = 24


@asynccontextmanager
async def watching(gateway: Gateway, config: Config) -> AsyncIterator[None]:
    """Look at the rules as long as the block lasts. Raises `ConfigError` for receivers that can't be told anything."""
    if not config.alerts.enabled:
        yield
        return
    async with Poster() as poster:
        watch = make_watch(gateway, config, poster)
        every = config.alerts.every_seconds
        works = {"alerts": lambda: watch.run(every), "held deployments": lambda: _hold_for_ever(gateway, every)}
        async with at_work(gateway.telemetry.metrics, works):
            yield


def make_watch(gateway: Gateway, config: Config, poster: Poster) -> Watch:
    options = config.alerts
    actors: dict[str, Actor] = {
        "fail_over": FailOver(gateway.models),
        "roll_back": RollBack(Controller(gateway.migrations.store)),
    }
    if gateway.keys is not None:
        actors["limit_caller"] = LimitCaller(gateway.keys, options.limit_requests_per_minute)
    alertmanager = options.alertmanager and resolve_secret(options.alertmanager, used_by="alerts.alertmanager")
    return Watch(
        database=gateway.database,
        rules=gateway.alert_rules,
        messenger=Messenger(gateway.database, receivers_of(config), poster.post),
        holder=f"{socket.gethostname()}/{os.getpid()}/{new_id('watch')}",
        audit=AuditLog(gateway.database).append,
        actors=actors,
        acting=options.acting,
        links=Links(options.runbook_url, options.console_url),
        alertmanager=alertmanager,
        look_around=Surroundings(gateway, config).look,
    )


def receivers_of(config: Config) -> list[Receiver]:
    """Raises `ConfigError` for an address or a secret that is none; says neither."""
    receivers = []
    for name, webhook in config.alerts.webhooks.items():
        where = f"alerts.webhooks.{name}"
        url = resolve_secret(webhook.url, used_by=f"{where}.url")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ConfigError(f"{where}.url is no http(s) address")
        if not webhook.private and (parts.scheme != "https" or is_private_literal(parts.hostname)):
            raise ConfigError(
                f"{where}.url: a receiver out in the Internet is told by https",
                hint="set private = true for one in your own network",
            )
        secret = resolve_secret(webhook.secret, used_by=f"{where}.secret")
        if len(secret) < SHORTEST_SECRET:
            raise ConfigError(f"{where}.secret has fewer than {SHORTEST_SECRET} characters")
        receivers.append(Receiver(name, url, secret_bytes(secret), webhook.least_severity, webhook.private))
    return receivers


class Poster:
    """Posts and tells the status. Follows no redirects, reads no answers, and reaches private addresses only where
    they are meant: what a name leads to is looked at by the connection itself (`PublicResolver`)."""

    async def __aenter__(self) -> Poster:
        timeout = aiohttp.ClientTimeout(total=POST_SECONDS)
        self._anywhere = aiohttp.ClientSession(timeout=timeout)
        connector = aiohttp.TCPConnector(resolver=PublicResolver(), use_dns_cache=False)
        self._outside = aiohttp.ClientSession(timeout=timeout, connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._anywhere.close()
        await self._outside.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], private: bool) -> int:
        """Raises `OSError`, which says nothing of the address."""
        if not private and is_private_literal(urlsplit(url).hostname or ""):
            raise OSError("a private address")
        session = self._anywhere if private else self._outside
        try:
            async with session.post(url, data=body, headers=dict(headers), allow_redirects=False) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise OSError(type(error).__name__) from None


class Surroundings:
    """How this process's own part stands, as signals. What is as it should be is not worth a row."""

    def __init__(self, gateway: Gateway, config: Config) -> None:
        self.gateway, self.config = gateway, config
        self._rows_lost = 0.0
        self._ages_at = 0.0

    async def look(self, noted: Signals) -> None:
        """What could not be noted is looked at again the next time."""
        metrics = self.gateway.telemetry.metrics
        signals: list[Mapping[str, Any]] = [
            {"kind": "queue_depth", "subject": name, "value": stats.waiting}
            for name, stats in metrics.engines.stats.items()
            if stats is not None and stats.waiting
        ]
        routes = [model for model in self.gateway.models.values() if isinstance(model, Route)]
        open_ = {one.name for route in routes for one in route.deployments if one.breaker.state == "open"}
        signals += [{"kind": "breaker_open", "subject": name} for name in sorted(open_)]
        lost = metrics.registry.get_sample_value("wootz_ledger_rows_lost_total") or 0.0
        if lost > self._rows_lost:
            signals.append({"kind": "rows_lost", "value": lost - self._rows_lost})
        ages_at = self._ages_at
        if time.monotonic() >= ages_at:
            ages_at = time.monotonic() + AGES_EVERY
            signals += await asyncio.to_thread(self._stale_secrets)
            signals += self._retirements()
        await noted.note_all(signals)
        self._rows_lost, self._ages_at = lost, ages_at

    def _retirements(self) -> list[Mapping[str, Any]]:
        return [
            {"kind": "retires_in_days", "subject": one.model, "value": one.days_left}
            for one in affected(self.config, datetime.now(UTC).date())
            if one.days_left <= SOON
        ]

    def _stale_secrets(self) -> list[Mapping[str, Any]]:
        """Of the local store, where there is one. Needs no master key: it is about times, not values."""
        if not (self.config.home / "secrets.db").exists():
            return []
        now = time.time()
        return [
            {"kind": "stale_secret", "subject": about.name, "value": (now - current.created - about.max_age) / 86400}
            for about in open_local(self.config).stale()
            if (current := about.current) is not None
        ]


async def _hold_for_ever(gateway: Gateway, seconds: float) -> None:
    """Every process, not only the one that acts: each has breakers and routes of its own."""
    while True:
        try:
            await hold_deployments(gateway.database, gateway.models)
        except WootzError as error:  # What is held stays held until the database is back.
            log.warning("alerts: which deployments are held is not known: %s", error)
        await asyncio.sleep(seconds)
