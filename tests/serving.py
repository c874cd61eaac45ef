"""For tests over real sockets: an HTTP server in a thread of its own, and a model that does what a script says."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI
from fresh_database import fresh_sqlite

from wootz.app.bounded_http import BoundedHttp
from wootz.core import Config, LanguageModel, ModelConfig
from wootz.core.sections import ServerConfig
from wootz.core.wire import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionRequest,
    Delta,
    PromptTokensDetails,
    SamplingFields,
    Usage,
)
from wootz.gateway import Application, Gateway, KeyStore, add_routes, install, working
from wootz.gateway.limits import MemoryCounters
from wootz.gateway.limits.ledger_sums import LedgerSums
from wootz.gateway.limits.limiter import Limiter
from wootz.store import Database
from wootz.telemetry import Ledger, RequestRecord, Spool, Telemetry

Result = TypeVar("Result")
HANG = ...
"""In a script: wait for ever."""

CHAT = "/v1/chat/completions"
ASK = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}


async def until(condition: Callable[[], Awaitable[Result]]) -> Result:
    """The condition's first true result; a test that waits in vain fails."""
    async with asyncio.timeout(60):
        while not (result := await condition()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return result


class ScriptedModel(LanguageModel):
    """Says the texts of ``script`` (in a chat also whole deltas), raises its exceptions, and hangs at its `HANG`.
    Remembers what it was asked."""

    def __init__(self, name: str, script: list[Any] | None = None) -> None:
        self.name = name
        self.script: list[Any] = ["Hel", "lo, ", "wörld"] if script is None else script
        self.usage = Usage(
            prompt_tokens=7, completion_tokens=3, total_tokens=10,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=2),
        )  # fmt: skip
        self.last = ChunkChoice(delta=Delta(), finish_reason="stop")
        self.loaded = True
        self.asked: list[SamplingFields] = []
        self.hanging = threading.Event()
        self.cancelled = threading.Event()

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        def chunk(choices: list[ChunkChoice], usage: Usage | None = None) -> ChatChunk:
            return ChatChunk(id="chatcmpl-1", model=self.name, choices=choices, usage=usage)

        role: str | None = "assistant"
        async for line in self._play(request):
            delta = line if isinstance(line, Delta) else Delta(content=line)
            yield chunk([ChunkChoice(delta=delta.model_copy(update={"role": role}))])
            role = None
        yield chunk([self.last])
        yield chunk([], self.usage)

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        def chunk(choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
            return Completion(id="cmpl-1", model=self.name, choices=choices, usage=usage)

        async for text in self._play(request):
            yield chunk([CompletionChoice(text=text)])
        yield chunk([CompletionChoice(text="", finish_reason="stop")])
        yield chunk([], self.usage)

    async def ready(self) -> bool:
        return self.loaded

    async def _play(self, request: SamplingFields) -> AsyncGenerator[Any, None]:
        self.asked.append(request)
        for line in self.script:
            if isinstance(line, Exception):
                raise line
            if line is HANG:
                self.hanging.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()
            yield line


class Server:
    """An ASGI app on a free port of the loopback, in its own thread and event loop."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        options = uvicorn.Config(app, http=BoundedHttp, port=0, log_level="warning", timeout_graceful_shutdown=2)
        self._uvicorn = uvicorn.Server(options)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._up = threading.Event()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        serving = asyncio.create_task(self._uvicorn.serve())
        while not self._uvicorn.started and not serving.done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self._up.set()
        await serving

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._up.wait(30)
        host, port = self._uvicorn.servers[0].sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(30)

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run it in the server's event loop and wait."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)


class GatewayServer(Server):
    """A gateway with these models, on a database of its own."""

    def __init__(
        self,
        folder: Path,
        models: Callable[[], dict[str, LanguageModel]],
        *,
        accounts: bool = True,
        max_body_bytes: int = 64 * 1024,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """``settings`` are more sections of the config; with ``limits`` they are counted as these say."""
        self.time, self.wall = 0.0, time.time()
        names = {"unused": ModelConfig(source="file:unused")}
        server = ServerConfig(max_body_bytes=max_body_bytes)
        self.config = Config(home=folder, server=server, models=names, **(settings or {}))

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
            if self.config.database.url is None:
                self.database = Database(fresh_sqlite(folder / "wootz.db"))
            else:
                self.database = Database(self.config.database_url)
                await self.database.migrate()
            self.ledger = Ledger(self.database, Spool(folder / "unwritten"))
            self.keys = KeyStore(self.database)
            self.telemetry = Telemetry(self.ledger, {})
            keys = self.keys if accounts else None
            counters = MemoryCounters(clock=lambda: self.time, wall=lambda: self.wall)
            sums = LedgerSums(self.ledger, self.keys)
            limits = Limiter(counters, sums, self.telemetry, self.config.limits, wall=lambda: self.wall)
            if self.config.limits.redis:
                limits = Limiter.of(self.config, keys, self.telemetry)
            self.gateway = Gateway(self.config, models(), keys, self.telemetry, limits=limits)
            add_routes(app, self.gateway)
            self.key = (await self.keys.create("user"))[1]
            self.admin_key = (await self.keys.create("root", scopes=["admin"]))[1]
            async with working(self.gateway):
                yield
            await self.gateway.tasks.close()
            await self.gateway.migrations.shadows.close()
            for model in self.gateway.models.values():
                await model.close()
            await self.telemetry.close()
            await limits.counters.close()
            await self.database.close()

        app = Application(lifespan=lifespan)
        install(app, self.config)
        super().__init__(app)

    def wait_for_record(self, client_id: str) -> RequestRecord:
        """The row of a request whose client did not wait for its end, by the id that the client gave it."""

        (record,) = self.call(until(lambda: self.ledger.list(search=client_id)))
        return record
