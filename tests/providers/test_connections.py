"""A connection that was read to its end serves the next request too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from serving import Server

from wootz.core.wire import ChatRequest
from wootz.providers import Endpoint, OpenAICompatibleModel

CHUNK = 'data: {"id": "1", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'


@pytest.mark.parametrize(("seconds", "num_connections"), [(0.01, 1), (30.0, 3)])
async def test_an_answer_that_ends_soon_after_its_last_word_gives_the_connection_back(
    seconds: float, num_connections: int
) -> None:
    """And nobody waits for it."""
    app, ports = FastAPI(), list[int]()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        assert request.client
        ports.append(request.client.port)

        async def events() -> AsyncGenerator[str, None]:
            yield CHUNK
            yield "data: [DONE]\n\n"
            await asyncio.sleep(seconds)  # The end of the body comes in a packet of its own.

        return StreamingResponse(events(), media_type="text/event-stream")

    with Server(app) as server:
        model = OpenAICompatibleModel(Endpoint("m", f"{server.url}/v1"))
        for _ in range(3):
            request = ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
            async with aclosing(model.chat(request)) as chunks:
                assert len([chunk async for chunk in chunks]) == 2
            await asyncio.sleep(0.3)
        await model.close()
    assert len(set(ports)) == num_connections
