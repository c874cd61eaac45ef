"""A PostgreSQL that accepts connections and then is silent: nobody waits for longer than the time-outs say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from wootz.core import UnavailableError
from wootz.store import Database, database
from wootz.telemetry.signals import signals


class Stalling:
    """A proxy to a server; while it is ``silent`` it takes connections and bytes, and passes nothing on."""

    def __init__(self, url: str) -> None:
        self.url, self.silent = make_url(url), False
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Stalling:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()

    @property
    def through(self) -> str:
        url = self.url.set(host="127.0.0.1", port=self.port, query={})
        return url.render_as_string(hide_password=False)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        folder = self.url.query.get("host") or self.url.host
        port = self.url.port or 5432
        if str(folder).startswith("/"):
            there, back = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{port}")
        else:
            there, back = await asyncio.open_connection(str(folder), port)
        self._writers += [writer, back]
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if not self.silent:
                    writer.write(data)
            writer.close()


@pytest.fixture
async def stalling(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stalling]:
    patience = {"timeout": 0.5, "command_timeout": 0.5}
    monkeypatch.setitem(database._OPTIONS, "postgresql", {"pool_pre_ping": True, "connect_args": patience})
    async with Stalling(postgres_url) as proxy:
        yield proxy


async def ask(store: Database) -> int:
    async with store.session() as session:
        return (await session.execute(text("SELECT 1"))).scalar_one()


async def test_a_silent_server_is_an_error_soon_and_no_hindrance_later(stalling: Stalling) -> None:
    store = Database(stalling.through)
    assert await ask(store) == 1
    stalling.silent = True
    for _ in range(2):  # One kept connection, and one that is to be made.
        async with asyncio.timeout(30):
            with pytest.raises(UnavailableError) as failure:
                await ask(store)
        assert failure.value.code == "database_unavailable"
    async with asyncio.timeout(30):
        with pytest.raises(UnavailableError):
            await store.insert({signals: [{"at": datetime.now(UTC), "kind": "quality", "value": 1.0}]})
    stalling.silent = False
    assert await ask(store) == 1
    await store.close()


async def ask_twice(store: Database, stalling: Stalling) -> None:
    async with store.session() as session:
        await session.execute(text("SELECT 1"))
        stalling.silent = True
        await session.execute(text("SELECT 1"))


async def test_it_falls_silent_within_a_transaction(stalling: Stalling) -> None:
    store = Database(stalling.through)
    async with asyncio.timeout(30):
        with pytest.raises(UnavailableError):
            await ask_twice(store, stalling)
    stalling.silent = False
    assert await ask(store) == 1
    await store.close()
