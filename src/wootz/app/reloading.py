"""A running platform gets a new HTTP process (a new config, a new version of Wootz) without a failed request.

The new one inherits the listening socket and accepts on it as soon as every model answers it; then the old one stops
accepting, answers what it has, and ends (`wootz.app.draining`). The socket is never closed, so no connection is ever
refused. If the new one does not get that far, the old one goes on. Engines are not touched: what concerns them (local
models, ``[engine]``) needs a restart, and is refused here.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from wootz.app.draining import KEEP_ALIVE_SECONDS
from wootz.app.pid_file import PidFile
from wootz.app.preflight import check_master_key, check_secrets
from wootz.app.process import Child
from wootz.app.setup import SETUP_VARIABLE, HttpSetup
from wootz.core import Config, ConfigError, WootzError

if TYPE_CHECKING:
    from wootz.app.supervisor import Supervisor

MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072"}
"""For the C library: else it keeps memory for each of the database's threads, and what a large sort took, for ever."""
END_SECONDS = 10.0
"""What an old process gets to end, on top of the time for draining."""


def http_process(setup: HttpSetup) -> Child:
    child = Child("http", "wootz.app.http", environ=MALLOC | os.environ)
    _set_up(child, setup)
    return child


class Reloading:
    def __init__(self, supervisor: Supervisor, read_config: Callable[[], Config], file: PidFile) -> None:
        self._supervisor, self._read_config, self._file = supervisor, read_config, file
        self._one_at_a_time = asyncio.Lock()
        self._tasks = set[asyncio.Task[None]]()

    def ask(self) -> None:
        self._tasks.add(task := asyncio.create_task(self._reload()))
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        say = self._supervisor.say
        async with self._one_at_a_time:
            await self._supervisor.http.ready.wait()
            try:
                await self._replace(await asyncio.to_thread(self._checked_config))
            except WootzError as error:
                say(f"not reloaded: {error}")
                self._file.reloaded(failed=str(error))
            else:
                say("reloaded: a new HTTP process accepts, the old one finishes its answers")
                self._file.reloaded()

    def _checked_config(self) -> Config:
        config, old = self._read_config(), self._supervisor.setup.config
        kept = {
            "server.host": (config.server.host, old.server.host),
            "engine": (config.engine, old.engine),
            "home": (config.home, old.home),
            "the local models": tuple(
                {name: model for name, model in one.models.items() if model.is_local} for one in (config, old)
            ),
        }
        for name, (now, before) in kept.items():
            if now != before:
                raise ConfigError(f"{name} can't change while it runs", hint="stop `wootz up` and start it again")
        check_secrets(config)
        check_master_key(config)
        return config

    async def _replace(self, config: Config) -> None:
        supervisor = self._supervisor
        plain = supervisor.setup.model_copy(update={"config": config})
        told, tell = os.pipe()
        new = http_process(plain.model_copy(update={"ready": tell}))
        with os.fdopen(told, "rb", buffering=0) as pipe:
            os.set_blocking(told, False)

            async def accepts(child: Child) -> bool:
                if pipe.closed:  # It has got its place, and is started again.
                    return await supervisor.http_is_ready(child)
                return pipe.read(1) == b"1"

            keeper = asyncio.create_task(supervisor.keep(new, accepts))
            ready = asyncio.create_task(new.ready.wait())
            try:
                await asyncio.wait((keeper, ready), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ready.cancel()
                os.close(tell)
        if keeper.done():
            keeper.result()  # Raises why it did not start.
            return
        _set_up(new, plain)  # For when it has to be started again.
        supervisor.setup, supervisor.config = plain, config
        old, supervisor.http = supervisor.http, new
        supervisor.keepers.append(keeper)
        supervisor.leaving.add(old)
        await self._let_go(old, config)

    async def _let_go(self, old: Child, config: Config) -> None:
        assert old.process is not None
        with suppress(ProcessLookupError):
            old.process.send_signal(signal.SIGUSR1)

        async def end() -> None:
            patience = KEEP_ALIVE_SECONDS + config.server.drain_seconds + END_SECONDS
            with suppress(TimeoutError):
                assert old.process is not None
                await asyncio.wait_for(old.process.wait(), patience)
            old.kill()

        self._tasks.add(task := asyncio.create_task(end()))
        task.add_done_callback(self._tasks.discard)


def _set_up(child: Child, setup: HttpSetup) -> None:
    child.environ[SETUP_VARIABLE] = setup.model_dump_json()
    child.inherit = [setup.listener] + ([setup.ready] if setup.ready is not None else [])
