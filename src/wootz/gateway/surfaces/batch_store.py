"""Batches in the database. Whoever works on one holds a claim on it that runs out unless it is renewed, so a batch
whose worker was killed is taken up by another, or by the same server when it is back.

Only the holder of the claim writes a batch's ``batch`` (OpenAI's object); a user's wish to cancel is the ``status``.
"""

from __future__ import annotations

import time
from typing import Any

from msgspec import json
from sqlalchemy import BigInteger, Column, Index, String, Table, Text, and_, case, insert, or_, select, update

from wootz.core import BadRequestError, NotFoundError
from wootz.gateway.surfaces.file_store import printable
from wootz.store import Base, Database

batches = Table(
    "batches",
    Base.metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("status", String, nullable=False),
    Column("claimed_by", String),
    Column("claimed_until", BigInteger, nullable=False),
    Column("batch", Text, nullable=False),
    Index(None, "owner", "created_at"),
    Index(None, "status"),
)

OPEN = ("validating", "in_progress", "cancelling", "finalizing")
"""There is something left to do."""

Batch = dict[str, Any]


class BatchStore:
    """Times of claims are in milliseconds."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def create(self, owner: str, batch: Batch) -> None:
        row = {name: batch[name] for name in ("id", "created_at", "status")}
        row |= {"owner": owner, "claimed_by": None, "claimed_until": 0, "batch": _text(batch)}
        async with self.database.session() as session:
            await session.execute(insert(batches), [row])

    async def get(self, owner: str, id: str) -> Batch:
        """Raises `NotFoundError`, in the same words for another's batch."""
        query = select(batches).where(batches.c.id == printable(id), batches.c.owner == owner)
        async with self.database.session() as session:
            row = (await session.execute(query)).one_or_none()
        if row is None:
            raise NotFoundError(f'there is no batch "{id[:100]}"', code="batch_not_found", param="batch_id")
        return _shown(row)

    async def list(self, owner: str, *, limit: int, after: str | None = None) -> list[Batch]:
        """Newest first."""
        c = batches.c
        query = select(batches).where(c.owner == owner).order_by(c.created_at.desc(), c.id.desc()).limit(limit)
        if after is not None:
            last = await self.get(owner, after)
            same = and_(c.created_at == last["created_at"], c.id < last["id"])
            query = query.where(or_(c.created_at < last["created_at"], same))
        async with self.database.session() as session:
            return [_shown(row) for row in await session.execute(query)]

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

    async def claim(self, worker: str, seconds: float) -> tuple[str, Batch] | None:
        """The oldest batch that nobody works on, with its owner; None when there is none."""
        c, now = batches.c, _now()
        waiting = select(batches).where(c.status.in_(OPEN), c.claimed_until < now).order_by(c.created_at, c.id).limit(1)
        async with self.database.session() as session:
            row = (await session.execute(waiting)).one_or_none()
            if row is None:
                return None
            unchanged = and_(c.id == row.id, c.claimed_until == row.claimed_until)
            claim = {"claimed_by": worker, "claimed_until": now + int(1000 * seconds)}
            taken = await session.execute(update(batches).where(unchanged).values(claim).returning(c.id))
            return (row.owner, _shown(row)) if taken.one_or_none() else None

    async def save(self, worker: str, batch: Batch, seconds: float) -> str | None:
        """Write it and renew the claim (or give it back: 0 seconds). Returns the status that it has now, which may be
        "cancelling" instead; None when the claim was lost."""
        c = batches.c
        mine = and_(c.id == batch["id"], c.claimed_by == worker)
        values: dict[str, Any] = {"batch": _text(batch), "status": batch["status"]}
        values["claimed_until"] = _now() + int(1000 * seconds) if seconds else 0
        if batch["status"] in ("validating", "in_progress"):  # A wish to cancel stays, until it is fulfilled.
            values["status"] = case((c.status == "cancelling", c.status), else_=batch["status"])
        async with self.database.session() as session:
            return await session.scalar(update(batches).where(mine).values(values).returning(c.status))


def _shown(row: Any) -> Batch:
    batch = json.decode(row.batch)
    if row.status != batch["status"]:
        batch |= {"status": row.status, f"{row.status}_at": batch.get(f"{row.status}_at") or int(time.time())}
    return batch


def _text(batch: Batch) -> str:
    return json.encode(batch).decode()


def _now() -> int:
    return int(1000 * time.time())
