"""How an answer leaves: its head with its body, and never later than it would have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from wootz.app.bounded_http import BoundedHttp


async def whole(_request: Request) -> Response:
    return Response(b"HTTP/1.1 is how it begins", headers={"connection": "close"})


async def slow(request: Request) -> Response:
    async def parts() -> AsyncGenerator[bytes, None]:
        await request.app.state.heard.wait()
        yield b"HTTP/1.1 "
        yield b"2"

    return StreamingResponse(parts(), headers={"content-length": "10"})


async def empty(_request: Request) -> Response:
    return Response(status_code=204)


APP = Starlette(routes=[Route("/whole", whole), Route("/slow", slow), Route("/empty", empty)])


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)})
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def connected() -> tuple[BoundedHttp, Transport]:
    config = uvicorn.Config(APP, http=BoundedHttp, lifespan="off", date_header=False, server_header=False)
    config.load()
    protocol, transport = BoundedHttp(config, uvicorn.server.ServerState(), {}), Transport()
    protocol.connection_made(transport)
    return protocol, transport


def ask(protocol: BoundedHttp, path: str) -> None:
    protocol.data_received(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())


async def turns(number: int = 20) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_small_answer_is_one_write() -> None:
    protocol, transport = connected()
    ask(protocol, "/whole")
    await turns()
    (answer,) = transport.written
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nHTTP/1.1 is how it begins")
    assert transport.closed


async def test_a_head_does_not_wait_for_a_body_that_is_slow() -> None:
    APP.state.heard = asyncio.Event()
    protocol, transport = connected()
    ask(protocol, "/slow")
    await turns()
    assert len(transport.written) == 1
    assert transport.written[0].endswith(b"\r\n\r\n")
    APP.state.heard.set()
    await turns()
    assert b"".join(transport.written).endswith(b"\r\n\r\nHTTP/1.1 2")
    protocol.connection_lost(None)


@pytest.mark.parametrize("path", ["/empty", "/nowhere"])
async def test_answers_on_one_connection_keep_their_order(path: str) -> None:
    protocol, transport = connected()
    for _ in range(3):
        ask(protocol, path)
    await turns(60)
    assert b"".join(transport.written).count(b"HTTP/1.1 ") == 3
    protocol.connection_lost(None)
