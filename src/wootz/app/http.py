"""The HTTP process: every room's routes in one application, served on the socket that the supervisor bound.

There is exactly one OpenAI-compatible server in this house. `wootz up` runs it with accounts, `wootz serve` without.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from wootz import __version__, console, gateway
from wootz.app import large_pages
from wootz.app.alerting import watching
from wootz.app.bounded_http import BoundedHttp
from wootz.app.draining import KEEP_ALIVE_SECONDS, Server
from wootz.app.setup import SETUP_VARIABLE, HttpSetup
from wootz.core import BadRequestError, Config, LanguageModel, WootzError, resolve_secret
from wootz.core.secrets import use_stores
from wootz.core.sections import ServerConfig
from wootz.gateway import Application, Gateway, KeyStore
from wootz.gateway.errors import error_response
from wootz.gateway.identity import residency
from wootz.gateway.identity.erasure import Erasures
from wootz.gateway.identity.people import People
from wootz.gateway.routing import Route, open_routes
from wootz.gateway.routing.sharing import Sharing
from wootz.providers import EngineModel, open_models
from wootz.providers.retirements import warnings
from wootz.store import Database
from wootz.store.secrets import open_source, wrapper_of
from wootz.telemetry import BodyStore, KeepBodies, Ledger, PriceBook, Spool, Telemetry, UnderWay
from wootz.telemetry.drift import RULE as DRIFT
from wootz.telemetry.plain_bodies import keep_house
from wootz.telemetry.prompt_hash import PromptHasher
from wootz.telemetry.works import Work, at_work

try:
    from uvloop import new_event_loop
except ImportError:
    new_event_loop = None

log = logging.getLogger(__name__)

STATS_SECONDS = 1.0
GARBAGE_THRESHOLD = 10_000
"""Containers that a young collection waits for; Python's 700 are a few requests."""
READY_SECONDS = 20.0
CUT_SECONDS = 3.0
"""What answers that were cut when draining get to write their records."""


def create_app(config: Config, engine_sockets: Mapping[str, Path], *, accounts: bool = True) -> FastAPI:
    """The application. Its lifespan opens the database and the models, and closes them.

    ``engine_sockets`` has the socket of each local model's engine process. Without ``accounts`` nobody needs a key, but
    must come by a loopback name (`LoopbackNames`).
    """
    database = Database(config.database_url)
    ledger = Ledger(database, Spool(config.home / "unwritten"))
    prices, options = PriceBook.of(config), config.telemetry
    bodies = BodyStore(database, wrapper_of(config, create=True))
    keep = KeepBodies(bodies, options.body_days, options.body_bytes) if options.store_bodies else None
    under_way = UnderWay(config.home / "under_way")
    telemetry = Telemetry(
        ledger, prices, options.otlp_endpoint, service_name=options.service_name, keep_bodies=keep,
        hash_prompt=PromptHasher.of(config), under_way=under_way,
    )  # fmt: skip
    models: dict[str, LanguageModel] = {}
    front = Gateway(config, models, KeyStore(database) if accounts else None, telemetry)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(database.close)
            await database.migrate()
            await front.kept.check()
            ledger.recover()
            stack.push_async_callback(front.limits.counters.close)
            stack.push_async_callback(telemetry.close)
            await under_way.recover(ledger, front.limits.settle_for)
            if front.keys is not None:
                master = config.server.master_key
                await front.keys.set_master(master and resolve_secret(master, used_by="server.master_key"))
                await People(front.keys, config.identity).settle_all()
            stack.push_async_callback(front.caches.close)
            for words in warnings(config, datetime.now(UTC).date()):
                log.warning(words)
            models.update(open_models(config, engine_sockets))
            residency.guard_all(config, models)
            models.update(open_routes(config, models, prices))
            for model in models.values():
                stack.push_async_callback(model.close)
            stack.push_async_callback(front.tasks.close)
            await front.tasks.resume()
            stack.push_async_callback(front.drift.close)
            erased, rule = Erasures(database, front.caches, under_way), front.alert_rules[DRIFT]
            works: dict[str, Work] = {
                "engine states": lambda: _watch(models, telemetry, erased),
                "expired bodies": lambda: keep_house(bodies),
                "quality metrics": lambda: front.drift.watch(telemetry.metrics, rule),
                "killed processes": lambda: under_way.recover_for_ever(ledger, front.limits.settle_for),
            }
            if front.keys is not None:
                works["keys in use"] = front.keys.cache.read_ahead
            if (sharing := Sharing.of(config, models)) is not None:
                works["shared breakers"] = sharing.run
            await stack.enter_async_context(at_work(telemetry.metrics, works))
            await stack.enter_async_context(front.migrations.working())
            await stack.enter_async_context(gateway.working(front))
            await stack.enter_async_context(watching(front, config))
            yield

    # Of a request there is one span, ours. The framework's own would tell what a wrong body said.
    no_telemetry: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}
    app = Application(
        title="Wootz", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, telemetry=no_telemetry
    )  # fmt: skip
    app.state.gateway = front
    if not accounts:
        app.add_middleware(LoopbackNames)
    gateway.install(app, config)
    gateway.add_routes(app, front)
    console.install(app, front, database, ledger)
    return app


class LoopbackNames:
    """Answers only what is addressed to this machine by a loopback name.

    Else any web page could reach a server without accounts through a name of its own (DNS rebinding).
    """

    HOST = re.compile(r"(127(\.\d+){3}|localhost|\[::1\])(:\d+)?", re.IGNORECASE)

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and not self.HOST.fullmatch(Headers(scope=scope).get("host", "")):
            message = "a server without accounts is only for callers on its own machine"
            hint = "address it as 127.0.0.1 or localhost, or use `wootz up`, which asks for keys"
            app = error_response(BadRequestError(message, code="wrong_host", hint=hint))
        await app(scope, receive, send)


async def _watch(models: Mapping[str, LanguageModel], telemetry: Telemetry, erased: Erasures) -> None:
    """The engines count and the breakers switch; telemetry exports how they stand. What another process erased is
    forgotten here too."""
    engines = {
        name: model.client for name, model in models.items() if isinstance(model, EngineModel) and not model.parent
    }
    while True:
        await erased.catch_up()
        for name, client in engines.items():
            try:
                telemetry.set_engine_stats(name, await client.stats())
            except WootzError:
                telemetry.set_engine_stats(name, None)
        for route in models.values():
            if isinstance(route, Route):
                for deployment in route.deployments:
                    telemetry.set_breaker(deployment.name, deployment.breaker.state)
        await asyncio.sleep(STATS_SECONDS)


async def serve(setup: HttpSetup) -> None:
    """Serve until SIGTERM, or until SIGUSR1 says that another process has taken over; see `wootz.app.draining`."""
    config = setup.config
    use_stores(lambda scheme: open_source(config, scheme))
    app = create_app(config, setup.engine_sockets, accounts=setup.accounts)
    async with app.router.lifespan_context(app):
        options = http_options(app, config.server)
        if setup.ready is not None:
            await _until_ready(app.state.gateway)
        server = Server(options, app.state.gateway, notice=config.server.drain_notice_seconds, ready=setup.ready)
        _leave_what_lasts_alone()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, server.stop)
        loop.add_signal_handler(signal.SIGUSR1, server.hand_over)
        await server.serve(sockets=[socket.socket(fileno=setup.listener)])
        if cut := list(server.server_state.tasks):
            await asyncio.wait(cut, timeout=CUT_SECONDS)


def http_options(app: ASGIApp, config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedHttp,
        lifespan="off",
        log_level=config.log_level,
        access_log=config.log_level in ("debug", "info"),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(config.drain_seconds),
        server_header=False,
        proxy_headers=bool(config.trusted_proxies),
        forwarded_allow_ips=config.trusted_proxies,
    )


def _leave_what_lasts_alone() -> None:
    """What is there when the server begins stays, so the garbage collector need not look at it again and again: that
    was a tenth of a request's CPU time. Requests leave hardly any cycles, and those it still finds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    large_pages.gather()


async def _until_ready(gateway: Gateway) -> None:
    """Before a place is taken over, so that nobody is answered worse than by the one before. What the one before could
    not ask either is not waited for long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(READY_SECONDS):
            while await gateway.unready():  # noqa: ASYNC110 (other processes get ready; nothing here could tell us)
                await asyncio.sleep(0.05)


def main() -> None:
    setup = HttpSetup.model_validate_json(os.environ.pop(SETUP_VARIABLE))
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve(setup))
    except WootzError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
