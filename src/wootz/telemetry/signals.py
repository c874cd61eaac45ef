"""What is known of the traffic and stands in no request's record: each a kind, a moment, and a number.

Whoever sees something notes it: a guard an injection attempt, a grader a grade, an application that a conversation was
resolved, each process how long its queue is. Alerts read them beside the ledger, so what several replicas saw is seen
together, and an alert that looks a month back may do so after a restart.

    await signals.note("injection_attempt", user="user-7", key_id="key-1")
    await signals.note("quality", 0.82, subject="judge qwen-max", model="qwen-mini")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Column, Double, Index, Integer, String, Table, delete

from wootz.core import BadRequestError
from wootz.store import Base, Database, UtcDateTime
from wootz.telemetry.journal import storable

MAX_NAME_CHARS = 200

KINDS: Mapping[str, str] = {
    "injection_attempt": "a guard took a request for an attempt to instruct the model from within its data",
    "guardrail_trip": "a guard changed or refused a request or an answer; subject: which (pii, moderation, …)",
    "quality": "a grader's grade of one answer, 0 to 1; model: whose",
    "faithfulness": "the share of an answer's claims that its sources bear out, 0 to 1; model: whose",
    "resolved": "a conversation came to its end, 1, or was given up, 0; subject: its id, as its requests' tag has it",
    "queue_depth": "requests waiting for a place, of one process; subject: the model",
    "breaker_open": "a deployment's breaker was open, in one process; subject: the deployment",
    "rows_lost": "records that could not be stored since the last look, of one process",
    "engine_died": "an engine process ended unasked; subject: the model",
    "out_of_memory": "it ended for lack of memory; subject: the model",
    "stale_secret": "days that a secret's current version is past its age limit; subject: its name",
    "retires_in_days": "days until a model's announced end; subject: the model",
}
SHARES = ("quality", "faithfulness", "resolved")
"""From 0 to 1: one grade of 500 would be an alarm, or hide one, for weeks."""
PASSING = ("queue_depth", "breaker_open", "rows_lost", "stale_secret", "retires_in_days")
"""How things stand, noted again and again: of interest for a day. The others happened, and are kept for longer."""
PASSING_DAYS, LASTING_DAYS = 1, 60

signals = Table(
    "signals",
    Base.metadata,
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("kind", String, nullable=False),
    Column("value", Double, nullable=False),
    Column("subject", String),
    Column("model", String),
    Column("user", String),
    Column("key_id", String),
    Index(None, "kind", "at"),
)


class Signals:
    def __init__(self, database: Database, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.database, self._clock = database, clock

    async def note(self, kind: str, value: float = 1.0, **of: str | None) -> None:
        """``of``: ``subject``, ``model``, ``user``, ``key_id``. Raises `BadRequestError` for an unknown kind, and for a
        value that a share can't have."""
        await self.note_all([{"kind": kind, "value": value, **of}])

    async def note_all(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Each as the arguments of `note`, and ``at`` where it was not now."""
        if rows:
            await self.database.insert({signals: [self._row(**row) for row in rows]})

    async def forget_old(self) -> None:
        now, passing = self._clock(), signals.c.kind.in_(PASSING)
        for days, which in ((PASSING_DAYS, passing), (LASTING_DAYS, ~passing)):
            async with self.database.session() as session:
                await session.execute(delete(signals).where(which, signals.c.at < now - timedelta(days=days)))

    def _row(
        self,
        *,
        kind: str,
        value: float = 1.0,
        at: datetime | None = None,
        subject: str | None = None,
        model: str | None = None,
        user: str | None = None,
        key_id: str | None = None,
    ) -> dict[str, Any]:
        if kind not in KINDS:
            raise BadRequestError(f'nobody reads signals of the kind "{kind[:50]}"', hint=f"one of {', '.join(KINDS)}")
        if kind in SHARES and not 0 <= value <= 1:
            raise BadRequestError(f'"{kind}" is from 0 to 1, and not {value:g}', param="value")
        names = {"subject": subject, "model": model, "user": user, "key_id": key_id}
        kept = {name: text and storable(text, MAX_NAME_CHARS) for name, text in names.items()}
        return {"at": at or self._clock(), "kind": kind, "value": float(value), **kept}
