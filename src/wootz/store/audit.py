"""Who did what to whom, and when: a log to which rows are only ever added, and in which a changed row shows.

Each row holds the SHA-256 of what it says and of the hash before it, so a row that was altered, taken out, put in or
swapped breaks the chain at its place. `AuditLog.verify` walks it. The head (how many rows, the last one's hash) lies
in a row of its own: it makes writers queue up, in one process or in many, and shows when the log's end was cut off.

What a chain can show, and what not: whoever may write to the whole database can compute every hash anew, and nothing
inside it would tell. So keep heads elsewhere (`wootz audit head`, once a day, in another system's log or on paper): a
log that was rewritten or cut does not lead through a head that was kept. What never was written, no chain can miss.
Triggers refuse to change rows at all; they stop accidents and stolen application credentials, not a database's owner.

Rows name people by the ids of their accounts. So a person can be forgotten (the account loses its name) while the
chain, which must keep every row, still holds.

Schneier and Kelsey, "Secure audit logs to support computer forensics" (1999); RFC 6962 for heads kept by others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Text, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from wootz.store.columns import UtcDateTime
from wootz.store.database import Base, Database

NO_HASH = "0" * 64
"""What the first row says of the row before it."""
MAX_WORD_CHARS = 300
_PAGE = 1000


class AuditRow(Base):
    __tablename__ = "audit"

    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    """1, 2, 3, … without gaps."""
    at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    actor: Mapped[str] = mapped_column(index=True)
    action: Mapped[str] = mapped_column(index=True)
    subject: Mapped[str] = mapped_column(index=True)
    detail: Mapped[str] = mapped_column(Text)
    """JSON, as text: exactly these characters were hashed."""
    previous: Mapped[str]
    hash: Mapped[str]


class AuditHeadRow(Base):
    """One row. To write to it is to hold the log until the transaction ends."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sequence: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str]


@dataclass(frozen=True)
class Head:
    """How far the log reached: row number ``sequence`` had the hash ``hash``."""

    sequence: int
    hash: str


@dataclass(frozen=True)
class Entry:
    sequence: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]
    previous: str
    hash: str

    def to_json(self) -> str:
        """One line of an export. It holds everything that its hash is made of."""
        return json.dumps(asdict(self) | {"at": self.at.isoformat()}, sort_keys=True)


@dataclass(frozen=True)
class Verdict:
    head: Head
    """As far as the chain was found to hold."""
    problem: str | None
    """None for a chain that holds."""

    @property
    def holds(self) -> bool:
        return self.problem is None


class AuditLog:
    def __init__(self, database: Database, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database, self._clock = database, clock

    async def append(
        self,
        *,
        actor: str,
        action: str,
        subject: str = "",
        detail: Mapping[str, Any] | None = None,
        session: AsyncSession | None = None,
    ) -> Entry:
        """``action`` is a noun and a past verb, ``secret.rotated``; ``detail`` is JSON, and never holds a secret.

        With a ``session`` the row is written if and when that transaction is. Make it the transaction's last
        statement: from here to the commit every other writer of the log waits.
        """
        if session is None:
            async with self._database.session() as own:
                return await self.append(actor=actor, action=action, subject=subject, detail=detail, session=own)
        await session.flush()  # What the row tells of fails before it is told.
        # One statement takes the lock and reads under it. (A read first would, on SQLite, be of an older state.)
        take = update(AuditHeadRow).values(sequence=AuditHeadRow.sequence + 1)
        taken = (await session.execute(take.returning(AuditHeadRow.sequence, AuditHeadRow.hash))).one()
        said: dict[str, Any] = {
            "sequence": taken.sequence,
            "at": self._clock().astimezone(UTC),
            "actor": _word(actor),
            "action": _word(action),
            "subject": _word(subject),
            "detail": json.dumps(dict(detail or {}), sort_keys=True, allow_nan=False),
            "previous": taken.hash,
        }
        said["hash"] = _hash(**said)
        await session.execute(insert(AuditRow), [said])
        await session.execute(update(AuditHeadRow).values(hash=said["hash"]))
        return Entry(**said | {"detail": json.loads(said["detail"])})

    async def head(self) -> Head:
        async with self._database.session() as session:
            row = (await session.execute(select(AuditHeadRow.sequence, AuditHeadRow.hash))).one()
        return Head(row.sequence, row.hash)

    async def verify(self, kept: Sequence[Head] = ()) -> Verdict:
        """Walk the whole chain, also while others write to it. ``kept`` are heads that were kept elsewhere."""
        expected = {head.sequence: head.hash for head in kept}
        reached = Head(0, NO_HASH)
        async with self._database.session() as session:
            last = select(func.max(AuditRow.sequence)).scalar_subquery()
            found = (await session.execute(select(AuditHeadRow.sequence, AuditHeadRow.hash, last))).all()
        if len(found) != 1:
            return Verdict(reached, "the log's head is missing, or there are two")
        end, end_hash, last_row = found[0]
        async for row in self._rows(up_to=end):
            problem = _problem_of(row, reached)
            if problem is None and expected.pop(row.sequence, row.hash) != row.hash:
                problem = f"row {row.sequence} is not the one whose hash was kept: the log was rewritten up to there"
            if problem is not None:
                return Verdict(reached, problem)
            reached = Head(row.sequence, row.hash)
        if (reached.sequence, max(last_row or 0, reached.sequence)) != (end, end):
            return Verdict(reached, f"rows {reached.sequence + 1} and later are missing, or not of this log")
        if reached.hash != end_hash:
            return Verdict(reached, f"the last row, {end}, is not the one that was written last")
        if missing := [sequence for sequence in expected if sequence > end or sequence < 1]:
            return Verdict(reached, f"the log ends before row {min(missing)}, whose hash was kept: it was cut off")
        return Verdict(reached, None)

    async def entries(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        subject: str | None = None,
        since: datetime | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[Entry]:
        """The newest first. ``action`` may be a beginning: ``key.`` for all that was done to keys."""
        query = select(AuditRow).order_by(AuditRow.sequence.desc()).limit(limit)
        for column, value in ((AuditRow.actor, actor), (AuditRow.subject, subject)):
            query = query if value is None else query.where(column == value)
        if action is not None:
            query = query.where(AuditRow.action.startswith(action, autoescape=True))
        if since is not None:
            query = query.where(AuditRow.at >= since)
        if before is not None:
            query = query.where(AuditRow.sequence < before)
        async with self._database.session() as session:
            return [_entry(row) for row in await session.scalars(query)]

    async def export(self) -> AsyncIterator[str]:
        """Every row as a line of JSON, oldest first."""
        async for row in self._rows(up_to=(await self.head()).sequence):
            yield _entry(row).to_json()

    async def _rows(self, up_to: int) -> AsyncIterator[AuditRow]:
        query = select(AuditRow).where(AuditRow.sequence <= up_to).order_by(AuditRow.sequence).limit(_PAGE)
        after: int | None = None
        while True:
            async with self._database.session() as session:
                page = query if after is None else query.where(AuditRow.sequence > after)
                rows = (await session.scalars(page)).all()
            for row in rows:
                yield row
            if len(rows) < _PAGE:
                return
            after = rows[-1].sequence


def _problem_of(row: AuditRow, before: Head) -> str | None:
    if row.sequence != before.sequence + 1:
        return f"row {before.sequence + 1} is missing: row {row.sequence} follows row {before.sequence}"
    if row.previous != before.hash:
        return f"row {row.sequence} does not follow the row before it: one of them was replaced"
    said = {name: getattr(row, name) for name in ("sequence", "at", "actor", "action", "subject", "detail", "previous")}
    return None if _hash(**said) == row.hash else f"row {row.sequence} was altered"


def _hash(*, sequence: int, at: datetime, actor: str, action: str, subject: str, detail: str, previous: str) -> str:
    """Of a JSON list, in which no word can run into the next."""
    said = json.dumps([sequence, at.isoformat(), actor, action, subject, detail, previous])
    return hashlib.sha256(said.encode()).hexdigest()


def _word(text: str) -> str:
    """As every database keeps it: no zero characters, no halves of surrogate pairs, no end."""
    kept = text.encode(errors="backslashreplace").decode().replace("\0", "\\0")
    return kept if len(kept) <= MAX_WORD_CHARS else kept[: MAX_WORD_CHARS - 1] + "…"


def _entry(row: AuditRow) -> Entry:
    return Entry(
        row.sequence, row.at, row.actor, row.action, row.subject, json.loads(row.detail), row.previous, row.hash
    )
