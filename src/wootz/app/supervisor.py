"""`wootz up`: one foreground process that starts the others, keeps them running, and ends them in order.

Two kinds of children: one engine process per local model, and the HTTP process (gateway and console). They meet
on Unix sockets in a private folder. A child that dies after it once worked is started again; one that never got
that far (a broken model file) ends the start, with the child's own last line as the reason. Ctrl-C lets the HTTP
process finish running answers, then ends the engines; a second Ctrl-C ends everything at once. However the
supervisor itself ends, no child outlives it (`wootz.core.leash`). SIGHUP (`wootz reload`) replaces the HTTP process
without a failed request: a new one, with the config as it is now, accepts on the same socket before the old one drains.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wootz.app.pid_file import pid_file
from wootz.app.preflight import Prepared, open_database
from wootz.app.process import Child, Say, engine_process
from wootz.app.reloading import Reloading, http_process
from wootz.app.setup import HttpSetup
from wootz.core import Config, UnavailableError, WootzError
from wootz.engine.client import EngineClient
from wootz.engine.protocol import Hello
from wootz.gateway import KeyStore
from wootz.telemetry.signals import Signals

OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|MemoryError|bad_alloc", re.IGNORECASE)
"""What an engine's last words are when it ended for lack of it."""
MOST_FAILED_STARTS = 5
"""A child that worked once is given up when it then dies this often in a row without getting ready."""
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 30.0
END_SECONDS = 5.0
"""What a child gets to end by itself, on top of the time for draining."""


@dataclass(frozen=True)
class Ready:
    """What is known once everything is up. ``admin_key`` is there on the very first start only."""

    url: str
    engines: dict[str, Hello]
    admin_key: str | None


def _prompts_of(name: str) -> str:
    """What the process is called that computes a model's prompts (``[engine] disaggregated``)."""
    return f"{name} (prompts)"


class StartError(WootzError):
    """A child process could not be started, or not be kept running."""

    code = "start_failed"


def run(
    config: Config,
    prepared: Prepared,
    *,
    say: Say,
    announce: Callable[[Ready], None],
    accounts: bool = True,
    read_config: Callable[[], Config] | None = None,
) -> None:
    """Start the platform and stay until told to stop (SIGINT or SIGTERM). Raises `WootzError` when it can't.

    ``read_config`` has the config as it is when the platform is reloaded.
    """
    with (
        prepared.listener,
        tempfile.TemporaryDirectory(prefix="wootz-", ignore_cleanup_errors=True) as folder,
        pid_file(config.home, prepared.listener.getsockname()[1]) as file,
    ):
        supervisor = Supervisor(config, prepared, Path(folder), say=say, accounts=accounts)
        supervisor.reloading = Reloading(supervisor, read_config or (lambda: config), file)
        asyncio.run(supervisor.run(announce))


class Supervisor:
    """The children, and which of them are ready. ``folder`` holds the sockets: it is private and has a short path."""

    def __init__(self, config: Config, prepared: Prepared, folder: Path, *, say: Say, accounts: bool) -> None:
        self.config, self.say, self.accounts = config, say, accounts
        sockets = {name: folder / f"{index}.sock" for index, name in enumerate(prepared.model_paths)}
        self.models = list(sockets)
        prompts = {name: folder / f"{path.stem}.prompts.sock" for name, path in sockets.items()}
        if not config.engine.disaggregated:
            prompts = {}
        self.clients = {name: EngineClient(path) for name, path in sockets.items()}
        self.clients |= {_prompts_of(name): EngineClient(path) for name, path in prompts.items()}
        self.engines = [
            engine_process(
                name, path, sockets[name], config.engine_of(name), config.models[name].adapters, prompts.get(name)
            )
            for name, path in prepared.model_paths.items()
        ]
        self.engines += [
            engine_process(_prompts_of(name), prepared.model_paths[name], path, config.engine_of(name))
            for name, path in prompts.items()
        ]
        self.setup = HttpSetup(
            config=config, engine_sockets=sockets, accounts=accounts, listener=prepared.listener.fileno()
        )
        self.http = http_process(self.setup)
        self.leaving: set[Child] = set()
        """HTTP processes whose place another one has taken, until they have drained."""
        self.reloading: Reloading | None = None
        self.keepers: list[asyncio.Task[None]] = []
        host, self.port = prepared.listener.getsockname()[:2]
        self.host = str({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host))
        self.stopping = asyncio.Event()

    async def run(self, announce: Callable[[Ready], None]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        if self.reloading is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reloading.ask)
        async with open_database(self.config) as database:
            self.signals = Signals(database)
            await self._run(KeyStore(database) if self.accounts else None, announce)

    async def _run(self, keys: KeyStore | None, announce: Callable[[Ready], None]) -> None:
        for client in self.clients.values():
            client.start()
        self.keepers = [asyncio.create_task(self.keep(child, self._engine_is_ready)) for child in self.engines]
        self.keepers.append(asyncio.create_task(self.keep(self.http, self.http_is_ready)))
        try:
            await self._until(self._all_ready())
            if not self.stopping.is_set():
                announce(await self._what_is_ready(keys))
                await self._until(self.stopping.wait())
        finally:
            await self._end()

    # --- keeping ----------------------------------------------------------------------------------------------

    async def keep(self, child: Child, is_ready: Callable[[Child], Awaitable[bool]]) -> None:
        """Start the child, and start it again whenever it dies; raises `StartError` when that is hopeless."""
        failed_starts, delay = 0, FIRST_DELAY_SECONDS
        while not self.stopping.is_set():
            await child.start(self.say)
            watch = asyncio.create_task(self._watch(child, is_ready))
            how = await child.wait()
            watch.cancel()
            if self.stopping.is_set() or child in self.leaving:
                self.leaving.discard(child)
                return
            if child in self.engines:
                await self._note_death(child)
            if child.ready.is_set():
                child.ready.clear()
                failed_starts, delay = 0, FIRST_DELAY_SECONDS
            failed_starts += 1
            if not child.has_worked or failed_starts > MOST_FAILED_STARTS:
                if os.environ.get("WOOTZ_DEBUG"):
                    child.relay(self.say)
                reason = child.last_line.removeprefix("error: ") or "it said nothing"
                raise StartError(f"{child.name} does not start ({how}): {reason}")
            self.say(f"{child.name} ended ({how}); starting it again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)

    async def _note_death(self, engine: Child) -> None:
        """For the alerts `engine-died` and `out-of-memory`, which know this one only from here."""
        kinds = ["engine_died", *(["out_of_memory"] if OUT_OF_MEMORY.search(engine.last_line) else [])]
        with suppress(UnavailableError):
            await self.signals.note_all([{"kind": kind, "subject": engine.name} for kind in kinds])

    async def _watch(self, child: Child, is_ready: Callable[[Child], Awaitable[bool]]) -> None:
        try:
            while not await is_ready(child):  # noqa: ASYNC110 (another process gets ready; nothing here could tell us)
                await asyncio.sleep(0.05)
        except Exception as error:  # Never ready, and nobody would hear why: as one that does not start.
            self.say(f"{child.name}: whether it is ready can't be told: {error!r}")
            child.kill()
            return
        if child.has_worked:
            self.say(f"{child.name} works again")
        child.has_worked = True
        child.ready.set()
        child.relay(self.say)

    async def _engine_is_ready(self, child: Child) -> bool:
        return self.clients[child.name].ready

    async def http_is_ready(self, _child: Child) -> bool:
        """It answers (the port is open from the start, for it is ours) and has found every engine."""
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
            writer.write(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            status = await reader.readline()
            writer.close()
        except OSError:
            return False
        return b" 200 " in status

    async def _all_ready(self) -> None:
        for child in (*self.engines, self.http):
            await child.ready.wait()

    async def _what_is_ready(self, keys: KeyStore | None) -> Ready:
        """The admin key is made only now, so that it is never lost in a start that failed."""
        admin_key = await keys.ensure_admin() if keys else None
        host = f"[{self.host}]" if ":" in self.host else self.host
        engines = {name: hello for name in self.models if (hello := self.clients[name].hello) is not None}
        return Ready(f"http://{host}:{self.port}", engines, admin_key)

    # --- ending -----------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        if self.stopping.is_set():
            for child in (self.http, *self.leaving, *self.engines):
                child.kill()
        else:
            self.say("stopping; once more to stop at once")
            self.stopping.set()

    async def _until(self, goal: Awaitable[object]) -> None:
        """Wait for the goal, or for the signal to stop; raise as soon as a child is given up."""
        waits = [asyncio.ensure_future(goal), asyncio.ensure_future(self.stopping.wait())]
        try:
            while not any(task.done() for task in waits):
                done, _ = await asyncio.wait([*waits, *self.keepers], return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                self.keepers = [keeper for keeper in self.keepers if not keeper.done()]
        finally:
            for task in waits:
                task.cancel()

    async def _end(self) -> None:
        """First the HTTP processes, so that running answers can finish; then the engines."""
        self.stopping.set()
        patience = self.config.server.drain_notice_seconds + self.config.server.drain_seconds + END_SECONDS
        await asyncio.gather(*(child.stop(patience) for child in (self.http, *self.leaving)))
        await asyncio.gather(*(client.close() for client in self.clients.values()))
        await asyncio.gather(*(engine.stop(END_SECONDS) for engine in self.engines))
        for keeper in self.keepers:
            keeper.cancel()
        await asyncio.gather(*self.keepers, return_exceptions=True)
