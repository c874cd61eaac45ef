"""Rows that are written where the caller stands: what then may not happen is that it waits."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from wootz.core import UnavailableError
from wootz.store import Database, sqlite_writer
from wootz.telemetry.signals import signals

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


def row(value: float = 1.0, **fields: Any) -> dict[str, Any]:
    return {"at": NOW, "kind": "quality", "value": value, "subject": "ünï", **fields}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "one.db"


@pytest.fixture
async def database(file: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{file}")
    await database.migrate()
    yield database
    await database.close()


async def number(database: Database) -> int:
    async with database.session() as session:
        return await session.scalar(select(func.count()).select_from(signals)) or 0


async def test_a_row_reads_as_sqlalchemy_would_have_written_it(database: Database) -> None:
    assert database.insert_here({signals: [row(0.5)]})
    async with database.session() as session:
        await session.execute(signals.insert(), [row(0.5)])
    with sqlite3.connect(str(database.url.database)) as plain:
        ours, theirs = plain.execute("select at, kind, value, subject, model from signals order by id").fetchall()
    assert ours == theirs
    async with database.session() as session:
        times = (await session.execute(select(signals.c.at))).scalars().all()
    assert list(times) == [NOW, NOW]


async def test_a_row_that_is_there_stays_as_it_is(database: Database) -> None:
    assert database.insert_here({signals: [row(0.25, id=7)]})
    await database.insert({signals: [row(0.5, id=7), row(0.75, id=8)]})
    async with database.session() as session:
        assert (await session.execute(select(signals.c.value).order_by(signals.c.id))).scalars().all() == [0.25, 0.75]


async def test_while_another_process_writes_nobody_stands_still(database: Database, file: Path) -> None:
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("begin immediate")
    assert not database.insert_here({signals: [row()]})
    waiting = asyncio.create_task(database.insert({signals: [row()]}))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    other.execute("commit")
    await waiting
    assert database.insert_here({signals: [row()]})
    assert await number(database) == 2


async def test_many_rows_are_not_for_the_event_loop(database: Database) -> None:
    many = {signals: [row() for _ in range(sqlite_writer.FEW_ROWS + 1)]}
    assert not database.insert_here(many)
    await database.insert(many)
    assert await number(database) == sqlite_writer.FEW_ROWS + 1


async def test_the_log_is_written_back_and_begun_anew(
    database: Database, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "LOG_ROWS", 20)
    log, sizes, refused = f"{file}-wal", list[int](), 0
    for _ in range(100):
        refused += not database.insert_here({signals: [row()]})
        await database.insert({signals: [row()]})
        sizes.append(os.stat(log).st_size)
    assert max(sizes) < 3 * sizes[15]
    assert await number(database) == 200 - refused


@pytest.mark.parametrize("few", [True, False], ids=["here", "in a thread"])
async def test_a_row_that_sqlite_refuses_leaves_nothing_behind(database: Database, few: bool) -> None:
    rows = {signals: [row() for _ in range(1 if few else 50)] + [row(id=2**70)]}
    with pytest.raises(OverflowError):
        await database.insert(rows)
    assert await number(database) == 0
    assert database.insert_here({signals: [row()]})


async def test_a_full_disk_is_a_database_out_of_order(database: Database) -> None:
    assert database.insert_here({signals: [row()]})
    writer: Any = database._writer
    pages = writer._connection.execute("pragma page_count").fetchone()[0]
    writer._connection.execute(f"pragma max_page_count = {pages}")
    with pytest.raises(UnavailableError, match="full"):
        database.insert_here({signals: [row(subject="x" * 100_000)]})
    assert await number(database) == 1
