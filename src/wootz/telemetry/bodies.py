"""What was asked and answered, kept for some days: only where ``telemetry.store_bodies`` is switched on.

A body is redacted before it is stored (`redaction`), bounded, deleted when its days are over, and deleted with its
user's other traces by ``wootz erase``. It lies in a table of its own: spans, logs and metrics never see one.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Column, Index, String, Table, Text, delete, select

from wootz.core.errors import WootzError
from wootz.core.wire import ChunkChoice, CompletionChoice
from wootz.store import Base, Database, UtcDateTime
from wootz.telemetry.record import RequestRecord
from wootz.telemetry.redaction import SLACK, redact_json

log = logging.getLogger(__name__)

bodies = Table(
    "bodies",
    Base.metadata,
    Column("request_id", String, primary_key=True),
    Column("user", String),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("request", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Index(None, "user"),
    Index(None, "expires_at"),
)

SWEEP_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class StoredBody:
    """Both as JSON, redacted."""

    request_id: str
    user: str | None
    expires_at: datetime
    request: str
    answer: str


class BodyCollector:
    """Gathers one request's body while it is answered, no more of it than will be kept."""

    def __init__(self, request: BaseModel, max_bytes: int, days: int) -> None:
        self._request = request
        self._max_bytes = max_bytes
        self._days = days
        self._room = max_bytes + SLACK
        self._parts: dict[tuple[int, str], list[str]] = {}

    def add(self, choice: ChunkChoice | CompletionChoice) -> None:
        if self._room <= 0:
            return
        if isinstance(choice, CompletionChoice):
            return self._append(choice.index, "text", choice.text)
        delta = choice.delta
        self._append(choice.index, "reasoning", delta.reasoning_content)
        self._append(choice.index, "content", delta.content)
        for call in delta.tool_calls or ():
            function = call.get("function") or {}
            number = call.get("index", 0)
            self._append(choice.index, f"call {number}", function.get("name"))
            self._append(choice.index, f"arguments {number}", function.get("arguments"))

    def _append(self, index: int, kind: str, text: Any) -> None:
        if isinstance(text, str) and text:
            self._room -= len(text)
            self._parts.setdefault((index, kind), []).append(text)

    def finish(self, record: RequestRecord) -> StoredBody:
        answer: dict[int, dict[str, str]] = {}
        for (index, kind), texts in self._parts.items():
            answer.setdefault(index, {})[kind] = "".join(texts)
        choices = [{"index": index, **kinds} for index, kinds in sorted(answer.items())]
        asked = self._request.model_dump(mode="json", exclude_none=True)
        return StoredBody(
            request_id=record.request_id,
            user=record.user,
            expires_at=record.started_at + timedelta(days=self._days),
            request=self._json(asked),
            answer=self._json(choices),
        )

    def _json(self, value: Any) -> str:
        text = json.dumps(redact_json(value, self._max_bytes), ensure_ascii=False, indent=1)
        data = text.encode("utf-8", "replace")
        if len(data) > self._max_bytes:
            text = data[: self._max_bytes].decode("utf-8", "ignore") + "… [cut]"
        return text.encode("utf-8", "replace").decode().replace("\0", "?")


class BodyStore:
    """Reads bodies, and deletes them. The ledger writes them, each with its record in one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def get(self, request_id: str) -> StoredBody | None:
        query = select(bodies).where(bodies.c.request_id == request_id, bodies.c.expires_at > datetime.now(UTC))
        async with self.database.session() as session:
            row = (await session.execute(query)).one_or_none()
        return None if row is None else StoredBody(**row._mapping)

    async def sweep(self, now: datetime | None = None) -> int:
        """Delete what has expired; returns how many."""
        gone = delete(bodies).where(bodies.c.expires_at <= (now or datetime.now(UTC))).returning(bodies.c.request_id)
        async with self.database.session() as session:
            return len((await session.execute(gone)).all())

    async def sweep_for_ever(self) -> None:
        """Also where bodies are no longer stored: those of before have a right to their end."""
        while True:
            try:
                await self.sweep()
            except WootzError as error:
                log.warning("bodies: expired ones not deleted: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)
