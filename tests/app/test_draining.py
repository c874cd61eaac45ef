"""A server that is told to stop says so before it stops, and finishes what it has begun."""

from __future__ import annotations

import asyncio
import json
import signal

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from serving import until
from starlette.responses import StreamingResponse

from wootz.app import draining
from wootz.app.bounded_http import BoundedHttp
from wootz.app.draining import Server
from wootz.app.preflight import bind


class Gateway:
    draining = False


class Running:
    """The server on an application whose answers wait until they are let go."""

    def __init__(self, *, notice: float = 0.0) -> None:
        app, self.gateway, self.let_go = FastAPI(), Gateway(), asyncio.Event()

        @app.get("/now")
        async def now() -> str:
            return "now"

        @app.get("/stream")
        async def stream() -> StreamingResponse:
            async def parts():
                yield "begun "
                await self.let_go.wait()
                yield "ended"

            return StreamingResponse(parts())

        options = uvicorn.Config(app, http=BoundedHttp, lifespan="off", log_level="error", timeout_graceful_shutdown=5)
        self.server = Server(options, self.gateway, notice=notice)  # type: ignore[arg-type]
        self.socket = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    async def __aenter__(self) -> Running:
        self.task = asyncio.create_task(self.server.serve(sockets=[self.socket.dup()]))
        await until(lambda: _true(self.server.started))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.let_go.set()
        self.server.stop()
        self.server.should_exit = True
        await self.task
        self.socket.close()


async def _true(value: bool) -> bool:
    return value


async def test_while_it_gives_notice_it_answers_and_tells_every_connection_to_end() -> None:
    async with Running(notice=60.0) as running, httpx.AsyncClient(base_url=running.url) as http:
        assert "connection" not in (await http.get("/now")).headers
        running.server.stop()
        assert running.gateway.draining
        for _ in range(2):  # On the old connection, and on a new one.
            answer = await http.get("/now")
            assert (answer.text, answer.headers["connection"]) == ('"now"', "close")
        assert not running.task.done()
        running.server.stop()  # A second time: at once.
        await asyncio.wait_for(running.task, 20)


async def test_who_hands_over_answers_on_its_connections_and_finishes_streams() -> None:
    """The same socket, by another server, takes who is new."""
    async with Running() as old, httpx.AsyncClient(base_url=old.url, timeout=30) as http:
        await asyncio.gather(http.get("/now"), http.get("/now"))  # Two connections, which are idle now.
        async with http.stream("GET", "/stream") as begun:
            parts = begun.aiter_text()
            assert await anext(parts) == "begun "
            old.server.hand_over()
            await until(lambda: _true(not old.server.servers[0].is_serving()))
            assert (await http.get("/now")).headers["connection"] == "close"
            old.let_go.set()
            assert await anext(parts) == "ended"
        await asyncio.wait_for(old.task, 20)


async def test_who_hands_over_does_not_wait_for_ever_for_an_idle_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "KEEP_ALIVE_SECONDS", -0.9)
    async with Running() as old, httpx.AsyncClient(base_url=old.url) as http:
        await http.get("/now")
        old.server.hand_over()
        await asyncio.wait_for(old.task, 20)


@pytest.mark.slow
def test_a_platform_that_is_stopped_says_so_at_readyz_first(start) -> None:
    far = {"WOOTZ_MODELS__FAR__BASE_URL": "http://127.0.0.1:9/v1"}
    platform = start(WOOTZ_SERVER__DRAIN_NOTICE_SECONDS="3", **far).wait_until_ready()
    with httpx.Client(base_url=platform.url) as http:
        assert http.get("/readyz").status_code == 200
        platform.process.send_signal(signal.SIGTERM)
        while (answer := http.get("/readyz")).status_code == 200:
            pass
        assert (answer.status_code, json.loads(answer.text)["status"]) == (503, "draining")
        assert http.get("/healthz").status_code == 200
    assert platform.process.wait(60) == 0
    assert list((platform.home / "run").iterdir()) == []
