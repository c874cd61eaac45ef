"""The audit log: no row of it can be changed unseen, whoever writes to it at the same time."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from wootz.store import Database
from wootz.store.audit import AuditHeadRow, AuditLog, AuditRow, Head

NUM_ROWS = 6
COLUMNS = [column.name for column in AuditRow.__table__.columns]


async def filled(database: Database) -> AuditLog:
    log = AuditLog(database)
    for number in range(NUM_ROWS):
        await log.append(actor="key-1", action="secret.rotated", subject=f"openai-{number % 2}", detail={"to": number})
    return log


async def without_triggers(database: Database) -> None:
    """What the database's owner can do, and nobody else."""
    drop = ["audit_keeps_UPDATE", "audit_keeps_DELETE"] if database.dialect == "sqlite" else ["audit_is_kept on audit"]
    async with database.session() as session:
        for name in drop:
            await session.execute(text(f"drop trigger {name}"))


async def rows_of(database: Database) -> list[dict[str, Any]]:
    async with database.session() as session:
        rows = await session.scalars(select(AuditRow).order_by(AuditRow.sequence))
        return [{name: getattr(row, name) for name in COLUMNS} for row in rows]


async def put(database: Database, rows: list[dict[str, Any]]) -> None:
    """The log as somebody who writes to the table past us leaves it."""
    async with database.session() as session:
        await session.execute(delete(AuditRow))
        if rows:
            await session.execute(insert(AuditRow), rows)


async def test_a_log_holds_and_tells_what_was_done(database: Database) -> None:
    log = await filled(database)
    verdict = await log.verify()
    assert verdict.holds
    assert verdict.head == await log.head()
    assert verdict.head.sequence == NUM_ROWS
    newest = (await log.entries(limit=1))[0]
    assert (newest.actor, newest.action, newest.subject, newest.detail) == (
        "key-1", "secret.rotated", "openai-1", {"to": NUM_ROWS - 1},
    )  # fmt: skip
    assert [entry.detail["to"] for entry in await log.entries(subject="openai-0", action="secret.")] == [4, 2, 0]
    assert await log.entries(action="secret%") == []


async def test_an_empty_log_holds(database: Database) -> None:
    assert (await AuditLog(database).verify()).holds


@pytest.mark.parametrize("change", [update(AuditRow).values(actor="me"), delete(AuditRow), text("truncate audit")])
async def test_the_database_itself_refuses_to_change_a_row(database: Database, change: Any) -> None:
    if database.dialect == "sqlite" and str(change) == "truncate audit":
        pytest.skip("SQLite has no truncate")
    log = await filled(database)
    with pytest.raises(DBAPIError, match="never changed"):
        async with database.session() as session:
            await session.execute(change)
    assert (await log.verify()).holds


@pytest.mark.parametrize("column", COLUMNS)
async def test_any_altered_column_of_any_row_is_found(database: Database, column: str) -> None:
    log = await filled(database)
    await without_triggers(database)
    rows = await rows_of(database)
    for number, row in enumerate(rows):
        for other in _others(row[column]):
            await put(database, [row | {column: other} if at == number else row for at, row in enumerate(rows)])
            assert not (await log.verify()).holds, (number, column, other)
    await put(database, rows)
    assert (await log.verify()).holds


def _others(old: Any) -> list[Any]:
    if isinstance(old, str):
        return ["", old + " ", old[:-1], "é" + old[1:]]
    return [old + 100, -old] if isinstance(old, int) else [old + timedelta(microseconds=1)]


def _removed(rows: list[dict[str, Any]], at: int, _other: int) -> list[dict[str, Any]]:
    return rows[:at] + rows[at + 1 :]


def _removed_and_renumbered(rows: list[dict[str, Any]], at: int, _other: int) -> list[dict[str, Any]]:
    return [row | {"sequence": number + 1} for number, row in enumerate(_removed(rows, at, 0))]


def _inserted(rows: list[dict[str, Any]], at: int, other: int) -> list[dict[str, Any]]:
    more = [*rows[:at], rows[other] | {"actor": "intruder"}, *rows[at:]]
    return [row | {"sequence": number + 1} for number, row in enumerate(more)]


def _swapped(rows: list[dict[str, Any]], at: int, other: int) -> list[dict[str, Any]]:
    swapped = list(rows)
    swapped[at], swapped[other] = (
        rows[other] | {"sequence": rows[at]["sequence"]}, rows[at] | {"sequence": rows[other]["sequence"]},
    )  # fmt: skip
    return swapped


def _replaced(rows: list[dict[str, Any]], at: int, other: int) -> list[dict[str, Any]]:
    """By a copy of another one, hash and all."""
    return [row if number != at else rows[other] | {"sequence": at + 1} for number, row in enumerate(rows)]


def _put_before(rows: list[dict[str, Any]], at: int, _other: int) -> list[dict[str, Any]]:
    return [rows[at] | {"sequence": 0}, *rows]


def _put_behind(rows: list[dict[str, Any]], at: int, _other: int) -> list[dict[str, Any]]:
    return [*rows, rows[at] | {"sequence": len(rows) + 1, "previous": rows[-1]["hash"]}]


@pytest.mark.parametrize(
    "tamper", [_removed, _removed_and_renumbered, _inserted, _swapped, _replaced, _put_before, _put_behind]
)
async def test_rows_can_not_come_go_or_change_places(database: Database, tamper: Callable[..., Any]) -> None:
    log = await filled(database)
    await without_triggers(database)
    rows = await rows_of(database)
    for at in range(NUM_ROWS):
        other = (at + 2) % NUM_ROWS
        await put(database, tamper(rows, at, other))
        assert not (await log.verify()).holds, at


async def test_a_cut_end_shows_by_the_head_and_a_forged_head_by_one_that_was_kept(database: Database) -> None:
    log = await filled(database)
    kept = await log.head()
    await without_triggers(database)
    rows = await rows_of(database)
    await put(database, rows[:4])
    assert not (await log.verify()).holds
    async with database.session() as session:
        await session.execute(update(AuditHeadRow).values(sequence=4, hash=rows[3]["hash"]))
    assert (await log.verify()).holds  # Inside the database nothing tells it any more.
    assert "cut off" in str((await log.verify([kept])).problem)

    await log.append(actor="intruder", action="key.created")
    await log.append(actor="intruder", action="key.created")
    assert (await log.verify()).holds
    assert "rewritten" in str((await log.verify([kept])).problem)
    assert (await log.verify([Head(2, rows[1]["hash"]), await log.head()])).holds


async def test_an_emptied_log_or_a_missing_head_is_found(database: Database) -> None:
    log = await filled(database)
    await without_triggers(database)
    await put(database, [])
    assert not (await log.verify()).holds
    async with database.session() as session:
        await session.execute(delete(AuditHeadRow))
    assert not (await log.verify()).holds


async def test_a_row_is_written_with_its_transaction_or_not_at_all(database: Database) -> None:
    log = AuditLog(database)

    async def fail_late() -> None:
        async with database.session() as session:
            await log.append(actor="a", action="key.revoked", session=session)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_late()
    assert (await log.head()).sequence == 0
    async with database.session() as session:
        await log.append(actor="a", action="key.revoked", session=session)
        await log.append(actor="a", action="key.created", session=session)
    assert (await log.verify()).head.sequence == 2


async def test_writers_queue_up_and_a_reader_between_them_sees_a_chain_that_holds(database: Database) -> None:
    log = AuditLog(database)

    async def write(writer: int) -> None:
        for number in range(8):
            await log.append(actor=f"writer-{writer}", action="key.created", detail={"number": number})

    async def read() -> None:
        for _ in range(5):
            assert (await log.verify()).holds

    await asyncio.gather(*map(write, range(5)), read())
    verdict = await log.verify()
    assert verdict.holds
    assert verdict.head.sequence == 40


WRITE = """
import asyncio, sys
from wootz.store import Database
from wootz.store.audit import AuditLog
async def main():
    database = Database(sys.argv[1])
    for _ in range(15):
        await AuditLog(database).append(actor=sys.argv[2], action="key.created")
    await database.close()
asyncio.run(main())
"""


@pytest.mark.slow
async def test_processes_queue_up_too(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    commands = [(sys.executable, "-c", WRITE, url, f"process-{number}") for number in range(3)]
    processes = [await asyncio.create_subprocess_exec(*command) for command in commands]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    verdict = await AuditLog(database).verify()
    assert verdict.holds
    assert verdict.head.sequence == 45


@given(words=st.lists(st.text(st.characters(codec=None), max_size=400), min_size=3, max_size=3), detail=st.text())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_is_written_comes_back_and_holds(database: Database, words: list[str], detail: str) -> None:
    log = AuditLog(database)
    written = await log.append(actor=words[0], action=words[1], subject=words[2], detail={"text": detail})
    assert (await log.entries(limit=1))[0] == written
    assert written.detail == {"text": detail}
    assert (await log.verify()).holds


async def test_an_export_can_be_checked_without_us(database: Database) -> None:
    log = await filled(database)
    previous = "0" * 64
    lines = [json.loads(line) async for line in log.export()]
    assert len(lines) == NUM_ROWS
    for line in lines:
        # The recipe of docs/identity.md.
        said = [line["sequence"], line["at"], line["actor"], line["action"], line["subject"]]
        said += [json.dumps(line["detail"], sort_keys=True), previous]
        assert line["previous"] == previous
        previous = hashlib.sha256(json.dumps(said).encode()).hexdigest()
        assert line["hash"] == previous
    assert replace(await log.head(), sequence=0).hash == previous


async def test_a_walk_goes_over_many_pages(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wootz.store.audit._PAGE", 2)
    log = await filled(database)
    assert (await log.verify()).head.sequence == NUM_ROWS
    assert len([line async for line in log.export()]) == NUM_ROWS
