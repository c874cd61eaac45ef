"""Browser sessions: a random cookie that stands for a key, so that no key and no token is kept in a browser.

The cookie holds 256 random bits and the table holds their SHA-256, so a read of the database opens no session. A
session ends when it expires, when it lies unused too long, when its person signs out, when an admin ends it, and when
its key is revoked or expires: the key is looked up again on every request. Who signed in through an identity provider
has a key that only sessions use (`people`), so ending a person ends them all.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ForeignKey, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from wootz.core import NotFoundError
from wootz.core.acting import actor
from wootz.core.sections import IdentityConfig
from wootz.core.wire import new_id
from wootz.gateway.keys import Key, KeyRow, KeyStore
from wootz.store import Base, UtcDateTime

USE_NOTED_AFTER = timedelta(minutes=1)
"""A use sooner after the last is not written down, so that a page that asks every second costs no write."""


class SessionRow(Base):
    __tablename__ = "sessions"

    id_hash: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str]
    """What it is called in lists and in the audit log; opens nothing."""
    key_id: Mapped[str] = mapped_column(ForeignKey("keys.id"), index=True)
    method: Mapped[str]
    csrf_token: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    used_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


@dataclass(frozen=True)
class Session:
    key: Key
    csrf_token: str


class Sessions:
    def __init__(
        self, keys: KeyStore, config: IdentityConfig, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.keys = keys
        self.lifetime = timedelta(hours=config.session_hours)
        self._idle = timedelta(minutes=config.idle_minutes)
        self._clock = clock

    async def open(self, key: Key, method: str, detail: dict[str, Any] | None = None) -> str:
        """Start a session; returns the cookie's value. Sweeps out expired ones."""
        token, now = secrets.token_urlsafe(32), self._clock()
        async with self.keys.database.session() as sql:
            await sql.execute(
                delete(SessionRow).where(or_(SessionRow.expires_at < now, SessionRow.used_at < now - self._idle))
            )
            row = SessionRow(
                id_hash=_hash(token),
                id=new_id("session"),
                key_id=key.id,
                method=method,
                csrf_token=secrets.token_urlsafe(32),
                created_at=now,
                used_at=now,
                expires_at=now + self.lifetime,
            )
            sql.add(row)
            told = {"method": method, "session": row.id} | (detail or {})
            await self.keys.audit.append(
                actor=key.id,
                action="session.opened",
                subject=key.user.id if key.user else key.id,
                detail=told,
                session=sql,
            )
        return token

    async def find(self, token: str) -> Session | None:
        """None for one that is over. Its use is noted, which keeps it from lying unused."""
        now = self._clock()
        query = (
            select(SessionRow.csrf_token, SessionRow.key_id, SessionRow.used_at)
            .join(KeyRow, KeyRow.id == SessionRow.key_id)
            .where(SessionRow.id_hash == _hash(token), SessionRow.expires_at > now, KeyRow.revoked_at.is_(None))
            .where(SessionRow.used_at > now - self._idle)
            .where(or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > now))
        )
        async with self.keys.database.session() as sql:
            found = (await sql.execute(query)).one_or_none()
            if found is not None and now - found.used_at > USE_NOTED_AFTER:
                await sql.execute(update(SessionRow).where(SessionRow.id_hash == _hash(token)).values(used_at=now))
        return Session(await self.keys.get(found.key_id), found.csrf_token) if found else None

    async def close(self, token: str) -> None:
        async with self.keys.database.session() as sql:
            gone = delete(SessionRow).where(SessionRow.id_hash == _hash(token)).returning(SessionRow.id)
            if (ended := await sql.scalar(gone)) is not None:
                await self.keys.audit.append(actor=actor(), action="session.closed", subject=ended, session=sql)

    async def end(self, session_id: str) -> None:
        """By an admin. Raises `NotFoundError`."""
        async with self.keys.database.session() as sql:
            gone = delete(SessionRow).where(SessionRow.id == session_id).returning(SessionRow.id)
            if await sql.scalar(gone) is None:
                raise NotFoundError(f'there is no session "{session_id[:64]}"')
            await self.keys.audit.append(actor=actor(), action="session.ended", subject=session_id, session=sql)

    async def list(self) -> Sequence[SessionRow]:
        """Those that go on, the last used first."""
        now = self._clock()
        query = select(SessionRow).where(SessionRow.expires_at > now, SessionRow.used_at > now - self._idle)
        async with self.keys.database.session() as sql:
            return (await sql.scalars(query.order_by(SessionRow.used_at.desc()))).all()


async def end_sessions(sql: AsyncSession, key_ids: Sequence[str]) -> int:
    """Of these keys, in the caller's transaction; how many they were."""
    gone = delete(SessionRow).where(SessionRow.key_id.in_(key_ids)).returning(SessionRow.id)
    return len((await sql.scalars(gone)).all())


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
