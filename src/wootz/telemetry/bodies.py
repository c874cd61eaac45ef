"""What was asked and answered, kept for some days: only where ``telemetry.store_bodies`` is switched on.

A body is redacted before it is stored (`redaction`), bounded, encrypted (AES-256-GCM, with its day's key:
`wootz.store.secrets.data_keys`), deleted when its days are over, and deleted with its user's other traces by ``wootz
erase``. It lies in a table of its own: spans, logs and metrics never see one.

The request's id, its API key and its team are associated data: a body that somebody copied to another request's row, or
a record that was changed to look like somebody else's, does not open. `BodyStore.get` is the one way to read one.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Column, Index, LargeBinary, String, Table, Text, delete, select

from wootz.core.errors import ConfigError, WootzError
from wootz.core.wire import ChunkChoice, CompletionChoice
from wootz.store import Base, Database, UtcDateTime
from wootz.store.secrets.data_keys import DataKeys, key_table
from wootz.store.secrets.envelope import KeyWrapper
from wootz.telemetry.journal import storable
from wootz.telemetry.record import RequestRecord
from wootz.telemetry.redaction import SLACK, redact_json

log = logging.getLogger(__name__)

bodies = Table(
    "bodies",
    Base.metadata,
    Column("request_id", String, primary_key=True),
    Column("user", String),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("sealed", LargeBinary),
    Column("sealed_with", String),
    # In plain, of before bodies were encrypted; see `plain_bodies`.
    Column("request", Text),
    Column("answer", Text),
    Index(None, "user"),
    Index(None, "expires_at"),
)

body_keys = key_table("body_keys")

SWEEP_SECONDS = 600.0


def keys_of_bodies(database: Database, wrapper: Callable[[], KeyWrapper]) -> DataKeys:
    return DataKeys(database, body_keys, "wootz body key", wrapper)


@dataclass(frozen=True, kw_only=True)
class StoredBody:
    """Both as JSON, redacted."""

    request_id: str
    user: str | None
    expires_at: datetime
    request: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class SealedBody:
    """As the ledger keeps it. ``sealed_with`` is the id of a key."""

    request_id: str
    user: str | None
    expires_at: datetime
    sealed: bytes
    sealed_with: str


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
    """Seals and reads bodies, and deletes them. The ledger writes them, each with its record in one transaction.

    ``wrapper`` gives the master key (`wootz.store.secrets.wrapper_of`), and is asked when it is needed.
    """

    def __init__(self, database: Database, wrapper: Callable[[], KeyWrapper]) -> None:
        self.database = database
        self.keys = keys_of_bodies(database, wrapper)

    async def seal(self, record: RequestRecord, body: StoredBody) -> SealedBody:
        """Raises `WootzError` where there is no key to seal it with; it must then not be kept."""
        key = await self.keys.todays(body.expires_at)
        text = json.dumps([body.request, body.answer])
        return SealedBody(
            request_id=body.request_id,
            user=body.user,
            expires_at=body.expires_at,
            sealed=key.seal(text, _context(record)),
            sealed_with=key.id,
        )

    async def get(self, record: RequestRecord) -> StoredBody | None:
        """None where none was kept, or its days are over. Raises `ConfigError` for one that does not open."""
        at = (bodies.c.request_id == record.request_id) & (bodies.c.expires_at > datetime.now(UTC))
        async with self.database.session() as session:
            row = (await session.execute(select(bodies).where(at))).one_or_none()
        if row is None:
            return None
        asked, answered = row.request, row.answer
        if row.sealed is not None:
            try:
                key = await self.keys.find(row.sealed_with)
                asked, answered = json.loads(key.open(row.sealed, _context(record)))
            except ConfigError as error:
                raise ConfigError(f"what {record.request_id} said: {error.message}", hint=error.hint) from None
        return StoredBody(
            request_id=row.request_id, user=row.user, expires_at=row.expires_at, request=asked, answer=answered
        )

    async def sweep(self, now: datetime | None = None) -> int:
        """Delete what has expired, and keys that only expired bodies may need; returns how many bodies."""
        now = now or datetime.now(UTC)
        gone = delete(bodies).where(bodies.c.expires_at <= now).returning(bodies.c.request_id)
        async with self.database.session() as session:
            number = len((await session.execute(gone)).all())
        await self.keys.sweep(now)
        return number

    async def sweep_for_ever(self) -> None:
        """Also where bodies are no longer stored: those of before have a right to their end."""
        while True:
            try:
                await self.sweep()
            except WootzError as error:
                log.warning("bodies: expired ones not deleted: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)


def _context(record: RequestRecord) -> bytes:
    """As the ledger has it, for it is read back from there."""
    parts = (record.request_id, record.key_id, record.team_id)
    return json.dumps(["wootz body", *(part and storable(part) for part in parts)]).encode()
