"""Who asks, and by https or not: a balancer's word is believed, a stranger's is not."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from pydantic import ValidationError

from wootz.app.http import http_options
from wootz.app.preflight import bind
from wootz.core import Config

CLIENT = "203.0.113.7"


async def seen(trusted: list[str], headers: list[tuple[str, str]]) -> list[str]:
    """What the application takes for the client's address and the scheme."""
    app = FastAPI()

    @app.get("/")
    async def tell(request: Request) -> list[str]:
        assert request.client is not None
        return [request.client.host, request.url.scheme]

    options = http_options(app, Config.model_validate({"server": {"trusted_proxies": trusted}}).server)
    server, socket = uvicorn.Server(options), bind("127.0.0.1", 0)
    serving = asyncio.create_task(server.serve(sockets=[socket]))
    async with httpx.AsyncClient() as http:
        port = socket.getsockname()[1]
        answer = await http.get(f"http://127.0.0.1:{port}/", headers=[*headers, ("connection", "close")])
    server.should_exit = True
    await serving
    return answer.json()


@pytest.mark.parametrize("trusted", [["127.0.0.1"], ["10.0.0.0/8", "127.0.0.0/8"]])
async def test_a_trusted_proxy_says_who_asks_and_how(trusted: list[str]) -> None:
    # The last that is no proxy: what a client wrote into the header itself stands before it.
    said = [("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-For", CLIENT), ("X-Forwarded-Proto", "https")]
    assert await seen(trusted, said) == [CLIENT, "https"]
    assert await seen(trusted, []) == ["127.0.0.1", "http"]


@pytest.mark.parametrize("trusted", [[], ["10.0.0.0/8"]])
async def test_nobody_else_does(trusted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # Uvicorn's own switch.
    said = [("X-Forwarded-For", CLIENT), ("X-Forwarded-Proto", "https")]
    assert await seen(trusted, said) == ["127.0.0.1", "http"]


@pytest.mark.parametrize("proxy", ["*", "balancer", "10.0.0.1/8", ""])
def test_what_is_no_address_is_refused(proxy: str) -> None:
    with pytest.raises(ValidationError, match="trusted_proxies"):
        Config.model_validate({"server": {"trusted_proxies": [proxy]}})
