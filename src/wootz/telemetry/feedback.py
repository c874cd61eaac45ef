"""What users thought of an answer: a rating from 0 to 1 by the request's id, and a word for what was good or wrong.

No text of users is kept: what they wrote belongs with bodies, which have an end (`telemetry/bodies.py`).
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Column, Double, Index, String, Table, delete, insert

from wootz.store import Base, Database, UtcDateTime

feedback = Table(
    "feedback",
    Base.metadata,
    Column("request_id", String, primary_key=True),
    Column("rated_at", UtcDateTime, nullable=False),
    Column("rating", Double, nullable=False),
    Column("label", String),
    Index(None, "rated_at"),
)


async def rate(database: Database, request_id: str, rating: float, label: str | None, now: datetime) -> None:
    """A second rating of the same answer takes the place of the first."""
    async with database.session() as session:
        await session.execute(delete(feedback).where(feedback.c.request_id == request_id))
        row = {"request_id": request_id, "rated_at": now, "rating": rating, "label": label}
        await session.execute(insert(feedback), [row])
