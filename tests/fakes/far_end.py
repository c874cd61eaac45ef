"""A remote endpoint on a real socket: it answers what it is told to, checks and remembers what it was asked."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from serving import Server

SECRET = "sk-far-end-0123456789"


class FarEnd:
    """``answer`` is a response, or the events of a stream; a list of lists is one stream for each request in turn."""

    path = "/{path:path}"

    def __init__(self) -> None:
        self.answer: Any = []
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: dict[str, str] = {}
        app = FastAPI()
        app.add_api_route(self.path, self._respond, methods=["POST", "GET"])
        self._server = Server(app)

    def __enter__(self) -> FarEnd:
        self._server.__enter__()
        self.url = self._server.url
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    async def _respond(self, request: Request) -> Response:
        raw = await request.body()
        body = json.loads(raw) if raw else {}
        self.asked.append(body)
        self.paths.append(str(request.url.path))
        self.headers = dict(request.headers)
        try:
            self.check(request, body)
        except AssertionError as error:
            return JSONResponse({"error": {"message": f"the fake refuses: {error}"}}, 400)
        if isinstance(self.answer, Response):
            return self.answer
        answer = self.answer[(len(self.asked) - 1) % len(self.answer)] if self._in_turns else self.answer
        return answer if isinstance(answer, Response) else self.respond(answer, body)

    @property
    def _in_turns(self) -> bool:
        return bool(self.answer) and isinstance(self.answer[0], list | Response)

    def check(self, request: Request, body: dict[str, Any]) -> None:
        """Asserts what the real endpoint would refuse."""

    def respond(self, answer: list[Any], body: dict[str, Any]) -> Response:
        return stream(self.encode(answer))

    def encode(self, events: list[Any]) -> Iterable[str]:
        raise NotImplementedError


def stream(lines: Iterable[str]) -> StreamingResponse:
    async def pieces() -> AsyncGenerator[str, None]:
        for line in lines:
            yield line

    return StreamingResponse(pieces(), media_type="text/event-stream")
