"""Erasing a person: everything that is kept of them, in every store, by one call, with a report.

Deleted: what they asked and were answered (stored bodies, kept responses, cached answers, files and batches with what
is under way of them, tasks), signals and incidents about them, their profile, groups and sessions. Ended: their keys.
Emptied of them: ledger rows, which keep tokens, times and money, so that sums and limits stay right; incidents of
others that they dealt with; and their account and keys, whose ids live on under names that say nothing. The audit log
names people by those ids, so it needs no change and its chain still holds.

All in one transaction, in which what is no table goes first: whoever is interrupted runs it again. SQLite then gives
its free pages back (`VACUUM`), so that deleted text is not left in the file. Other processes forget their cached
answers, all of them, within a second: they are not told whose it was about (`Erasures`).

What is out of reach, the report says: backups, PostgreSQL's write-ahead log, spans that were exported, and providers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Column, Integer, Table, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from wootz.core import Config, WootzError
from wootz.core.acting import actor
from wootz.core.atomic import atomic_file
from wootz.gateway.accounts import NO_ACCOUNT, AccountRow
from wootz.gateway.caches import Caches
from wootz.gateway.identity.rows import MemberRow, PersonRow, held
from wootz.gateway.identity.sessions import SessionRow
from wootz.gateway.keys import KeyRow
from wootz.gateway.surfaces.batch_store import batches
from wootz.gateway.surfaces.file_store import files
from wootz.gateway.surfaces.kept_house import remove_files
from wootz.gateway.surfaces.response_store import responses
from wootz.gateway.tasks import TaskRow
from wootz.store import Base, Database, UtcDateTime
from wootz.store.audit import AuditLog
from wootz.telemetry import RequestRecord, Spool, UnderWay
from wootz.telemetry.alerts import forget_person, load_rules
from wootz.telemetry.bodies import bodies
from wootz.telemetry.ledger import ERASED, requests
from wootz.telemetry.signals import signals

log = logging.getLogger(__name__)

FORGOTTEN: dict[str, Any] = {
    "user": ERASED, "tags": {}, "prompt_hash": None, "prompt_chars": None, "template_hash": None,
}  # fmt: skip
"""What a record says of who asked, when they are erased."""

OUT_OF_REACH = (
    "backups and snapshots of the database and of this folder",
    "PostgreSQL's write-ahead log and its replicas, until they are recycled",
    "spans that were exported to an OpenTelemetry collector",
    "what providers keep of the requests that they answered",
    "requests that were under way, or were when a server was killed: erase again when they are recorded",
    "the words of others, such as why they silenced an alert",
)

erasures = Table(
    "erasures",
    Base.metadata,
    Column("id", Integer, primary_key=True),
    Column("asked_at", UtcDateTime, nullable=False),
)


@dataclass(frozen=True)
class Report:
    user: str
    """The account's id; empty where the name was only what requests said of themselves."""
    counts: dict[str, int]
    out_of_reach: Sequence[str] = OUT_OF_REACH


@dataclass(frozen=True)
class Traces:
    """By what a person is known where something is kept of them."""

    account: AccountRow | None
    keys: Sequence[KeyRow]
    names: set[str]
    """What requests say of who asked: what was erased for, and the account's id and name."""

    @property
    def words(self) -> set[str]:
        """What is to be read nowhere any more; ids may be."""
        ids = {self.account.id} if self.account else set[str]()
        return self.names - ids | {key.name for key in self.keys}

    @property
    def key_ids(self) -> list[str]:
        return [key.id for key in self.keys]


class Eraser:
    def __init__(self, database: Database, config: Config) -> None:
        self._database, self._config = database, config
        self._rules = load_rules(config.alerts.file).values()

    async def erase(self, user: str, caches: Caches) -> Report:
        """``user`` is a user's name or id, or what requests gave as their ``user``. Erasing twice finds nothing."""
        async with self._database.session() as sql:
            if self._database.dialect == "sqlite":
                await (await sql.connection()).exec_driver_sql("PRAGMA secure_delete = ON")
            person = await _find(sql, user)
            counts = {"cached_answers": sum([await caches.purge(user=name) for name in person.names])}
            counts["records_waiting"] = await asyncio.to_thread(self._empty_spool, person)
            counts |= await self._erase_rows(sql, person)
            await sql.execute(insert(erasures).values(asked_at=datetime.now(UTC)))
            await AuditLog(self._database).append(
                actor=actor(),
                action="person.erased",
                subject=person.account.id if person.account else NO_ACCOUNT,
                detail={"counts": counts},
                session=sql,
            )
        await self._database.vacuum()
        return Report(person.account.id if person.account else "", counts)

    async def _erase_rows(self, sql: AsyncSession, person: Traces) -> dict[str, int]:
        names, keys = person.names, person.key_ids
        asked_here = or_(requests.c.user.in_(names), requests.c.key_id.in_(keys))
        theirs = select(requests.c.request_id).where(asked_here)

        async def gone(table: Any, condition: Any, id: Any) -> list[str]:
            return list((await sql.scalars(delete(table).where(condition).returning(id))).all())

        c, s = bodies.c, signals.c
        counts = {"bodies": len(await gone(bodies, or_(c.user.in_(names), c.request_id.in_(theirs)), c.request_id))}
        mine = or_(responses.c.user.in_(names), responses.c.owner.in_(keys))
        counts["responses"] = len(await gone(responses, mine, responses.c.id))
        counts["tasks"] = len(await gone(TaskRow, TaskRow.key_id.in_(keys), TaskRow.id))
        file_ids = await gone(files, files.c.owner.in_(keys), files.c.id)
        batch_ids = await gone(batches, batches.c.owner.in_(keys), batches.c.id)
        counts |= {"files": len(file_ids), "batches": len(batch_ids)}
        await asyncio.to_thread(remove_files, self._config, files, file_ids)
        await asyncio.to_thread(remove_files, self._config, batches, batch_ids)
        emptied = update(requests).where(asked_here, requests.c.user.is_distinct_from(ERASED)).values(FORGOTTEN)
        counts["records"] = len((await sql.execute(emptied.returning(requests.c.request_id))).all())
        counts["signals"] = len(await gone(signals, or_(s.user.in_(names), s.key_id.in_(keys)), s.id))
        counts["alerts"] = await forget_person(sql, names, person.words, self._rules)
        counts["sessions"] = len(await gone(SessionRow, SessionRow.key_id.in_(keys), SessionRow.id))
        counts["keys"] = sum(key.revoked_at is None for key in person.keys)
        for key in person.keys:
            key.name, key.prefix, key.tags = f"{ERASED} {key.id}", "", {}
            key.revoked_at = key.revoked_at or datetime.now(UTC)
        if (account := person.account) is not None:
            await gone(MemberRow, MemberRow.user_id == account.id, MemberRow.group_id)
            counts["people"] = len(await gone(PersonRow, PersonRow.user_id == account.id, PersonRow.user_id))
            account.name = f"{ERASED} {account.id}"
        return counts

    def _empty_spool(self, person: Traces) -> int:
        """Of ledger rows that wait for the database."""

        def is_theirs(record: RequestRecord) -> bool:
            return record.user != ERASED and (record.user in person.names or record.key_id in person.key_ids)

        number = 0
        for file, records in Spool(self._config.home / "unwritten").groups():
            forgotten = [
                msgspec.structs.replace(record, **FORGOTTEN) if is_theirs(record) else record for record in records
            ]
            if changed := sum(new is not old for new, old in zip(forgotten, records, strict=True)):
                number += changed
                _rewrite(file, forgotten)
        return number


class Erasures:
    """By which a process learns that somebody was erased by another one, and forgets its cached answers, and of what
    was under way all that is over."""

    def __init__(self, database: Database, caches: Caches, under_way: UnderWay) -> None:
        self._database, self._caches, self._under_way = database, caches, under_way
        self._seen: int | None = None

    async def catch_up(self) -> None:
        try:
            async with self._database.session() as sql:
                newest = int(await sql.scalar(select(func.max(erasures.c.id))) or 0)
            if self._seen is not None and newest > self._seen:
                self._under_way.close()
                await self._caches.purge()
        except WootzError:
            return  # The next time, then.
        self._seen = newest


async def _find(sql: AsyncSession, user: str) -> Traces:
    is_it = or_(AccountRow.id == user, AccountRow.name == user)
    account = await sql.scalar(select(AccountRow).where(AccountRow.kind == "user", is_it))
    if account is None:
        return Traces(None, [], {user})
    await held(sql, PersonRow, account.id)
    keys = (await sql.scalars(select(KeyRow).where(KeyRow.user_id == account.id))).all()
    return Traces(account, keys, {user, account.id, account.name})


def _rewrite(file: Path, records: Sequence[Any]) -> None:
    with atomic_file(file) as stream:
        stream.writelines(msgspec.json.encode(record) + b"\n" for record in records)
