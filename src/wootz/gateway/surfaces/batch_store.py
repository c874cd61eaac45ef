"""Batches in the database. Whoever works on one holds a claim on it that runs out unless it is renewed, so a batch
whose worker was killed is taken up by another, or by the same server when it is back.

Only the holder of the claim writes OpenAI's object, which is sealed; a user's wish to cancel is the ``status``. All
that a batch writes, its journal and its output too, is sealed with the key of its row.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from msgspec import json
from sqlalchemy import BigInteger, Column, Index, String, Table, Text, and_, case, insert, or_, select, update

from wootz.core import BadRequestError, ConfigError, NotFoundError
from wootz.gateway.kept import Kept, Thing, sealed_columns
from wootz.gateway.surfaces.file_store import printable
from wootz.store import Base, Database
from wootz.store.secrets.data_keys import DataKey

batches = Table(
    "batches",
    Base.metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("status", String, nullable=False),
    Column("claimed_by", String),
    Column("claimed_until", BigInteger, nullable=False),
    # In plain, of before it was encrypted.
    Column("batch", Text, nullable=False),
    *sealed_columns(),
    Index(None, "owner", "created_at"),
    Index(None, "status"),
)

OPEN = ("validating", "in_progress", "cancelling", "finalizing")
"""There is something left to do."""

Batch = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """What a worker has of a batch."""

    owner: str
    batch: Batch
    key: DataKey

    @property
    def thing(self) -> Thing:
        return Thing("batch", self.owner, self.batch["id"])


class BatchStore:
    """Times of claims are in milliseconds."""

    def __init__(self, database: Database, kept: Kept) -> None:
        self.database, self.kept = database, kept

    async def create(self, owner: str, batch: Batch) -> None:
        row = {name: batch[name] for name in ("id", "created_at", "status")}
        row |= {"owner": owner, "claimed_by": None, "claimed_until": 0}
        row |= self.sealed(Claim(owner, batch, await self.kept.key()))
        async with self.database.session() as session:
            await session.execute(insert(batches), [row])

    async def get(self, owner: str, id: str) -> Batch:
        """Raises `NotFoundError`, in the same words for another's batch."""
        query = select(batches).where(batches.c.id == printable(id), batches.c.owner == owner)
        async with self.database.session() as session:
            row = (await session.execute(query)).one_or_none()
        if row is None:
            raise NotFoundError(f'there is no batch "{id[:100]}"', code="batch_not_found", param="batch_id")
        return await self._shown(row)

    async def list(self, owner: str, *, limit: int, after: str | None = None) -> list[Batch]:
        """Newest first."""
        c = batches.c
        query = select(batches).where(c.owner == owner).order_by(c.created_at.desc(), c.id.desc()).limit(limit)
        if after is not None:
            last = await self.get(owner, after)
            same = and_(c.created_at == last["created_at"], c.id < last["id"])
            query = query.where(or_(c.created_at < last["created_at"], same))
        async with self.database.session() as session:
            rows = (await session.execute(query)).all()
        return [await self._shown(row) for row in rows]

    async def cancel(self, owner: str, id: str) -> Batch:
        """Ask for it; its worker finishes what it has begun. Raises `BadRequestError` for a batch that has ended."""
        c = batches.c
        wanted = and_(c.id == printable(id), c.owner == owner, c.status.in_(("validating", "in_progress")))
        async with self.database.session() as session:
            await session.execute(update(batches).where(wanted).values(status="cancelling"))
        batch = await self.get(owner, id)
        if batch["status"] not in ("cancelling", "cancelled"):
            raise BadRequestError(f"the batch is {batch['status']} already", code="batch_ended", param="batch_id")
        return batch

    # --- for workers ----------------------------------------------------------------------------------------------

    async def claim(self, worker: str, seconds: float) -> Claim | None:
        """The oldest batch that nobody works on; None when there is none. One that can't be opened is left alone for
        as long as a claim lasts, so that it stands in nobody's way, and raises `ConfigError`."""
        c, now = batches.c, _now()
        waiting = select(batches).where(c.status.in_(OPEN), c.claimed_until < now).order_by(c.created_at, c.id).limit(1)
        async with self.database.session() as session:
            row = (await session.execute(waiting)).one_or_none()
        if row is None:
            return None
        values: dict[str, Any] = {"claimed_by": worker, "claimed_until": now + int(1000 * seconds)}
        try:
            batch = await self._shown(row)
        except ConfigError:
            await self._take(row, values)
            raise
        key = await (self.kept.keys.find(row.sealed_with) if row.sealed is not None else self.kept.key())
        claim = Claim(row.owner, batch, key)
        if row.sealed is None:  # Of before batches were encrypted: what is written from now on is.
            values |= self.sealed(claim)
        return claim if await self._take(row, values) else None

    async def save(self, worker: str, claim: Claim, seconds: float) -> str | None:
        """Write the batch and renew the claim (or give it back: 0 seconds). Returns the status that it has now, which
        may be "cancelling" instead; None when the claim was lost."""
        c, status = batches.c, claim.batch["status"]
        mine = and_(c.id == claim.batch["id"], c.claimed_by == worker)
        values: dict[str, Any] = {"status": status} | self.sealed(claim)
        values["claimed_until"] = _now() + int(1000 * seconds) if seconds else 0
        if status in ("validating", "in_progress"):  # A wish to cancel stays, until it is fulfilled.
            values["status"] = case((c.status == "cancelling", c.status), else_=status)
        async with self.database.session() as session:
            return await session.scalar(update(batches).where(mine).values(values).returning(c.status))

    async def _take(self, row: Any, values: dict[str, Any]) -> bool:
        """False where another worker was faster."""
        c = batches.c
        unchanged = and_(
            c.id == row.id, c.claimed_until == row.claimed_until, c.sealed.is_not_distinct_from(row.sealed)
        )
        async with self.database.session() as session:
            taken = await session.execute(update(batches).where(unchanged).values(values).returning(c.id))
            return taken.one_or_none() is not None

    # --- rows -----------------------------------------------------------------------------------------------------

    def sealed(self, claim: Claim) -> dict[str, Any]:
        """The row's values of OpenAI's object."""
        return {"batch": ""} | self.kept.seal(claim.key, claim.thing, json.encode(claim.batch).decode())

    async def _shown(self, row: Any) -> Batch:
        text = await self.kept.open(Thing("batch", row.owner, row.id), row)
        batch = json.decode(row.batch if text is None else text)
        if row.status != batch["status"]:
            batch |= {"status": row.status, f"{row.status}_at": batch.get(f"{row.status}_at") or int(time.time())}
        return batch


def _now() -> int:
    return int(1000 * time.time())
