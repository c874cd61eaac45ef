"""The console in front of everything real but the model, whose answers are written down here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from fastapi import FastAPI
from fresh_database import fresh_sqlite

from wootz import console, gateway
from wootz.core import Config, LanguageModel, UnavailableError
from wootz.core.wire import ChatChunk, ChatRequest, ChunkChoice, Delta, PromptTokensDetails, Usage
from wootz.gateway import Gateway, KeyStore
from wootz.store import Database
from wootz.telemetry import Ledger, PriceBook, Telemetry

HTML = {"Accept": "text/html"}


@dataclass
class ScriptedModel(LanguageModel):
    """Says ``script`` word by word. Asked for "forever" it never ends; asked to "fail" it does, in the middle."""

    name: str = "scripted"
    provider: str = "script"
    script: str = "Steel is **iron** with a little carbon."
    pause: float = 0.0
    requests: list[ChatRequest] = field(default_factory=list)
    num_cancelled: int = 0

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        self.requests.append(request)
        asked = request.messages[-1].text
        words = re.findall(r"\S+\s*|\s+", self.script)
        try:
            if "forever" in asked:
                while True:
                    yield self._chunk("on and on ")
                    await asyncio.sleep(0.02)
            for number, word in enumerate(words):
                if number == 2 and "fail" in asked:
                    raise UnavailableError("the engine went away")
                yield self._chunk(word)
                await asyncio.sleep(self.pause)
        except (asyncio.CancelledError, GeneratorExit):
            self.num_cancelled += 1
            raise
        last = ChunkChoice(delta=Delta(), finish_reason="stop")
        yield ChatChunk(id="chatcmpl-1", model=self.name, choices=[last])
        usage = Usage(
            prompt_tokens=12,
            completion_tokens=len(words),
            total_tokens=12 + len(words),
            prompt_tokens_details=PromptTokensDetails(cached_tokens=8),
        )
        yield ChatChunk(id="chatcmpl-1", model=self.name, choices=[], usage=usage)

    def _chunk(self, text: str) -> ChatChunk:
        return ChatChunk(id="chatcmpl-1", model=self.name, choices=[ChunkChoice(delta=Delta(content=text))])


@dataclass
class House:
    """A running application and its insides."""

    app: FastAPI
    database: Database
    ledger: Ledger
    telemetry: Telemetry
    keys: KeyStore
    models: dict[str, LanguageModel]
    gateway: Gateway

    @property
    def model(self) -> ScriptedModel:
        model = self.models["scripted"]
        assert isinstance(model, ScriptedModel)
        return model

    async def key(self, name: str, **limits) -> str:
        return (await self.keys.create(name, **limits))[1]

    async def close(self) -> None:
        await self.telemetry.close()
        await self.database.close()


async def build_house(folder: Path, *, accounts: bool = True, config: Config | None = None) -> House:
    database = Database(fresh_sqlite(folder / "wootz.db"))
    ledger, keys, config = Ledger(database), KeyStore(database), config or Config()
    telemetry = Telemetry(ledger, PriceBook.of(config))
    models: dict[str, LanguageModel] = {"scripted": ScriptedModel(), "other": ScriptedModel("other")}
    front = Gateway(config, models, keys if accounts else None, telemetry)
    app = gateway.Application()
    gateway.install(app, config)
    gateway.add_routes(app, front)
    console.install(app, front, database, ledger)
    return House(app, database, ledger, telemetry, keys, models, front)


class Browser(httpx.AsyncClient):
    """A client with a cookie jar that says what a browser says."""

    def __init__(self, app: FastAPI, base_url: str = "http://console.test", address: str = "10.0.0.1") -> None:
        transport = httpx.ASGITransport(app, client=(address, 1), raise_app_exceptions=False)
        super().__init__(transport=transport, base_url=base_url, headers=HTML | {"Origin": base_url})

    async def sign_in(self, key: str) -> httpx.Response:
        return await self.post("/login", data={"key": key, "next": "/models"})

    async def csrf_token(self) -> str:
        page = (await self.get("/models")).text
        found = re.search(r'name="csrf-token" content="([^"]*)"', page)
        assert found is not None
        return found[1]

    async def submit(self, path: str, **fields) -> httpx.Response:
        return await self.post(path, data={"csrf_token": await self.csrf_token(), **fields})

    async def chat(self, text: str, *, csrf_token: str | None = None, **fields) -> httpx.Response:
        body = {"model": "scripted", "messages": [{"role": "user", "content": text}], "stream": True, **fields}
        token = await self.csrf_token() if csrf_token is None else csrf_token
        return await self.post("/console/chat", json=body, headers={"X-CSRF-Token": token, "Accept": "*/*"})
