"""The ledger: one durable row per request, read by cost reports and the console.

Writes are grouped. What has queued up is one transaction, right there where the database takes it at once (SQLite,
nobody else writing); else one task commits whatever has queued up while the last transaction did. The request id is
the primary key and a second write of it does nothing, so a retry can't double. While the database is gone records wait
in files (`Spool`), and are written when it is back.

A caller of `Ledger.write` waits until its record is durable. Where a file beside the database has the record already
(`UnderWay`), a row in SQLite would be no safer than that, and nobody's answer waits for it: see `Ledger.write_behind`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Double,
    Index,
    Integer,
    String,
    Table,
    and_,
    or_,
    select,
)

from wootz.core import ConfigError, NotFoundError, UnavailableError
from wootz.store import FEW_ROWS, Base, Database, ExactUSD, Rows, Typed, UtcDateTime
from wootz.telemetry.bodies import SealedBody, bodies
from wootz.telemetry.journal import storable
from wootz.telemetry.record import RequestRecord, Timeline
from wootz.telemetry.report import ReportRow, cost_report
from wootz.telemetry.spool import Spool

log = logging.getLogger(__name__)

requests = Table(
    "requests",
    Base.metadata,
    Column("request_id", String, primary_key=True),
    Column("started_at", UtcDateTime, nullable=False),
    Column("route", String, nullable=False),
    Column("key_id", String),
    Column("model", String, nullable=False),
    Column("provider", String),
    Column("stream", Boolean, nullable=False),
    Column("status", Integer, nullable=False),
    Column("error_code", String),
    Column("finish_reason", String),
    Column("refused", Boolean, nullable=False),
    Column("guarantee", String),
    Column("arithmetic", String),
    Column("prompt_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("cache_write_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("reasoning_tokens", Integer, nullable=False),
    Column("cost", ExactUSD, nullable=False),
    Column("priced", Boolean, nullable=False),
    Column("price", String),
    Column("time_to_first_token", Double),
    Column("inter_token_latency", Double),
    Column("queue_time", Double),
    Column("duration", Double, nullable=False),
    Column("client_disconnected", Boolean, nullable=False),
    Column("user", String),
    Column("prompt_hash", String),
    Column("prompt_chars", Integer),
    Column("template_hash", String),
    Column("team_id", String),
    Column("tags", Typed(dict[str, str], dict)),
    Column("deployment", String),
    Column("num_attempts", Integer, nullable=False),
    Column("lane", String, nullable=False),
    Column("cache", String, nullable=False),
    Column("tools", Typed(tuple[str, ...], tuple)),
    Column("timeline", Typed(Timeline, Timeline)),
    Index(None, "started_at"),
    Index(None, "key_id", "started_at"),
    Index(None, "model", "started_at"),
)

WAYS: dict[str, ColumnElement[bool]] = {
    "retried": requests.c.num_attempts > 1,
    "cached": requests.c.cache.in_(("exact", "semantic", "shared")),
    "unpriced": requests.c.priced.is_(False),
}

MAX_GROUP = 500
RETRY_DELAYS = (0.1, 0.5, 1.5)
"""Seconds between attempts when the database can't be reached; after the last the records are spooled."""
RECOVERY_SECONDS = 1.0
"""Between attempts to write what was spooled."""
BEHIND_SECONDS = 0.01
"""That a row waits for others which are written with it. Who reads the ledger through `Ledger` waits for the row."""
MOST_BEHIND = 128
"""Rows that may wait. A database that is slower than the answers slows these down, and not the memory up."""


ERASED = "erased"
"""Stands for a user who was forgotten."""


class Entry(NamedTuple):
    record: RequestRecord
    body: SealedBody | None
    tell: Callable[[Exception | None], None]
    """Is told when it is written, or why it never will be."""


class Ledger:
    """Without a ``spool`` a record that the database does not take is in the log only."""

    def __init__(self, database: Database, spool: Spool | None = None) -> None:
        self.database = database
        self._is_sqlite = database.dialect == "sqlite"
        self._spool = spool
        self._recovering: asyncio.Task[None] | None = None
        self._queue: list[Entry] = []
        self._begin: asyncio.Handle | None = None
        self._writer: asyncio.Task[None] | None = None

    async def write(self, record: RequestRecord, body: SealedBody | None = None) -> None:
        """Durable when it returns, and with it what was said, where that is kept. A caller that is cancelled while it
        waits has still handed the record over.

        Raises `UnavailableError` when the database stays out of reach through all retries and there is no spool; the
        record has then been logged, whole, as one JSON line.
        """
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        self._queue.append(Entry(record, body, partial(_settle, written)))
        if self._begin is None or isinstance(self._begin, asyncio.TimerHandle):
            self._cancel_begin()
            self._begin = loop.call_soon(self._begin_to_write)
        await written

    def write_behind(self, record: RequestRecord, tell: Callable[[Exception | None], None]) -> bool:
        """Write it soon, and ``tell`` when that is; for a record that is in a file which outlives this process.

        False, and nothing is done, where too many wait already, and where a row is safer than such a file: in
        PostgreSQL, on another machine.
        """
        if not self._is_sqlite or len(self._queue) >= MOST_BEHIND:
            return False
        self._queue.append(Entry(record, None, tell))
        self._begin_soon()
        return True

    async def flush(self) -> None:
        """Wait until all that was handed over is written, or waits in a file for its database."""
        self._begin_to_write()
        while self._writer is not None and not self._writer.done():
            await asyncio.shield(self._writer)
            self._begin_to_write()

    async def close(self) -> None:
        await self.flush()
        if self._recovering is not None:
            self._recovering.cancel()

    def recover(self) -> None:
        """Begin to write what an outage left in the spool, and go on until all of it is in."""
        if self._spool is not None and (self._recovering is None or self._recovering.done()):
            self._recovering = asyncio.create_task(self._recover(self._spool), name="ledger recovery")

    async def get(self, request_id: str) -> RequestRecord:
        await self.flush()
        async with self.database.session() as session:
            row = (await session.execute(select(requests).where(requests.c.request_id == request_id))).one_or_none()
        if row is None:
            raise NotFoundError(f'no request "{request_id}" in the ledger')
        return RequestRecord(**row._mapping)

    async def statuses(self, prefix: str) -> dict[str, int]:
        """How the requests whose ids begin with this ended."""
        query = select(requests.c.request_id, requests.c.status).where(
            requests.c.request_id.startswith(prefix, autoescape=True)
        )
        await self.flush()
        async with self.database.session() as session:
            return {row.request_id: row.status for row in await session.execute(query)}

    async def list(
        self,
        limit: int = 50,
        before: str | None = None,
        model: str | None = None,
        key_id: str | None = None,
        team_id: str | None = None,
        status: int | range | None = None,
        since: datetime | None = None,
        search: str | None = None,
        way: str | None = None,
    ) -> list[RequestRecord]:
        """Newest first. ``before`` is the request id the last page ended with; ``status`` may be ``range(400, 600)``.

        ``search`` is found anywhere in the request id, model, user or error code, whatever its case; ``way``, one of
        `WAYS`, is how the answer came about.
        """
        c = requests.c
        query = select(requests).order_by(c.started_at.desc(), c.request_id.desc()).limit(limit)
        if before is not None:
            last = await self.get(before)
            query = query.where(
                or_(
                    c.started_at < last.started_at,
                    and_(c.started_at == last.started_at, c.request_id < last.request_id),
                )
            )
        if model is not None:
            query = query.where(c.model == model)
        if key_id is not None:
            query = query.where(c.key_id == key_id)
        if team_id is not None:
            query = query.where(c.team_id == team_id)
        if isinstance(status, range):
            query = query.where(c.status.between(status.start, status.stop - 1))
        elif status is not None:
            query = query.where(c.status == status)
        if since is not None:
            query = query.where(c.started_at >= since)
        if way in WAYS:
            query = query.where(WAYS[way])
        if search:
            fields = (c.request_id, c.model, c.deployment, c.user, c.error_code)
            query = query.where(or_(*(field.icontains(search.replace("\0", ""), autoescape=True) for field in fields)))
        await self.flush()
        async with self.database.session() as session:
            return [RequestRecord(**row._mapping) for row in await session.execute(query)]

    async def report(
        self,
        by: Sequence[str],
        since: datetime | None = None,
        until: datetime | None = None,
        key_id: str | None = None,
        conversations: bool = False,
    ) -> list[ReportRow]:
        """Exact totals, grouped by any of `GROUPS`; see `cost_report`. With ``conversations``, also theirs."""
        await self.flush()
        async with self.database.session() as session:
            return await cost_report(session, requests, by, since, until, key_id, conversations)

    # --- the writer -------------------------------------------------------------------------------------------

    def _begin_soon(self) -> None:
        if self._queue and self._begin is None:
            self._begin = asyncio.get_running_loop().call_later(BEHIND_SECONDS, self._begin_to_write)

    def _cancel_begin(self) -> None:
        if self._begin is not None:
            self._begin.cancel()
            self._begin = None

    def _begin_to_write(self) -> None:
        self._cancel_begin()
        if not self._queue or (self._writer is not None and not self._writer.done()):
            return
        if not self._write_few() or self._queue:
            self._writer = asyncio.create_task(self._write_groups(), name="ledger writer")

    def _write_few(self) -> bool:
        """The first of the queue, here and now; false where that can't be."""
        if not self._is_sqlite:
            return False
        group = self._queue[:FEW_ROWS]
        try:
            is_written = self.database.insert_here(_rows_of(group))
        except Exception:
            return False  # The task tells one record from the other, and what to do about either.
        if is_written:
            del self._queue[: len(group)]
            for entry in group:
                entry.tell(None)
        return is_written

    async def _write_groups(self) -> None:
        while self._queue:
            if self._write_few():
                if len(self._queue) < FEW_ROWS:
                    return self._begin_soon()  # The next are written in place again.
                await asyncio.sleep(0)
                continue
            group, self._queue = self._queue[:MAX_GROUP], self._queue[MAX_GROUP:]
            try:
                await self._insert_with_retries(group)
            except UnavailableError as error:
                is_kept = self._keep([entry.record for entry in group])
                for entry in group:
                    entry.tell(None) if is_kept else _fail(entry, error)
            except Exception:
                # One record that the database refuses must not take the others of its group with it.
                for entry in group:
                    await self._write_alone(entry)
            else:
                for entry in group:
                    entry.tell(None)

    def _keep(self, records: list[RequestRecord]) -> bool:
        if self._spool is None:
            return False
        try:
            self._spool.add([RequestRecord(**_row(record)) for record in records])
        except ConfigError as error:
            log.error("ledger: %s", error)
            return False
        log.error("ledger: %d rows wait in %s until the database is back", len(records), self._spool.folder)
        self.recover()
        return True

    async def _recover(self, spool: Spool) -> None:
        while True:
            try:
                for file, records in spool.groups():
                    for record in records:
                        await self._insert([Entry(record, None, _nobody)])
                    file.unlink(missing_ok=True)
                    log.info("ledger: %d rows that had waited are written", len(records))
                return
            except UnavailableError:
                await asyncio.sleep(RECOVERY_SECONDS)
            except Exception:
                log.exception("ledger: %s stays as it is", spool.folder)
                return

    async def _write_alone(self, entry: Entry) -> None:
        try:
            await self._insert_with_retries([entry])
        except Exception as error:
            _fail(entry, error)
        else:
            entry.tell(None)

    async def _insert_with_retries(self, entries: list[Entry]) -> None:
        for delay in RETRY_DELAYS:
            try:
                return await self._insert(entries)
            except UnavailableError as error:
                log.warning("ledger: %s; trying again in %s s", error, delay)
                await asyncio.sleep(delay)
        await self._insert(entries)

    async def _insert(self, entries: list[Entry]) -> None:
        await self.database.insert(_rows_of(entries))


def _rows_of(entries: Sequence[Entry]) -> Rows:
    said = [vars(entry.body) for entry in entries if entry.body is not None]
    rows = [_row(entry.record) for entry in entries]
    return {requests: rows, bodies: said} if said else {requests: rows}


def _row(record: RequestRecord) -> dict[str, Any]:
    return {
        name: storable(value) if isinstance(value, str) else value
        for name, value in msgspec.structs.asdict(record).items()
    }


def _settle(written: asyncio.Future[None], error: Exception | None) -> None:
    if not written.done():
        written.set_result(None) if error is None else written.set_exception(error)


def _nobody(_error: Exception | None) -> None:
    """Nobody waits for it."""


def _fail(entry: Entry, error: Exception) -> None:
    log.error("ledger: row not written (%s): %s", error, json.dumps(entry.record.whole()))
    entry.tell(error)
