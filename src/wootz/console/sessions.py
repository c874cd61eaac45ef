"""Browser sessions: a random cookie that stands for a key, so that the key itself is typed once and kept nowhere.

The cookie holds 256 random bits and the table holds their SHA-256, so a read of the database opens no session. A
session ends when it expires, when its user signs out, and when its key is revoked or expires: the key is looked up
again on every request.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ForeignKey, delete, or_, select
from sqlalchemy.orm import Mapped, mapped_column

from wootz.core import RateLimitError
from wootz.gateway import Key, KeyStore
from wootz.gateway.keys import KeyRow
from wootz.store import Base, Database, UtcDateTime

COOKIE = "wootz_session"
LIFETIME = timedelta(hours=24)


class SessionRow(Base):
    __tablename__ = "sessions"

    id_hash: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("keys.id"))
    csrf_token: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


@dataclass(frozen=True)
class Visitor:
    """Who is looking at a page. Without accounts there is no key, and everything but keys may be seen."""

    key: Key | None
    csrf_token: str = ""

    @property
    def is_admin(self) -> bool:
        return self.key is None or self.key.is_admin

    @property
    def confined_to(self) -> str | None:
        """The id of the one key whose requests may be seen; None means everybody's."""
        return None if self.key is None or self.key.is_admin else self.key.id


class Sessions:
    def __init__(self, database: Database, keys: KeyStore) -> None:
        self._database = database
        self.keys = keys

    async def open(self, key: Key) -> str:
        """Start a session; returns the cookie's value. Sweeps out expired ones."""
        token, now = secrets.token_urlsafe(32), datetime.now(UTC)
        async with self._database.session() as sql:
            await sql.execute(delete(SessionRow).where(SessionRow.expires_at < now))
            sql.add(
                SessionRow(
                    id_hash=_hash(token),
                    key_id=key.id,
                    csrf_token=secrets.token_urlsafe(32),
                    created_at=now,
                    expires_at=now + LIFETIME,
                )
            )
        return token

    async def find(self, token: str) -> Visitor | None:
        now = datetime.now(UTC)
        query = (
            select(SessionRow.csrf_token, SessionRow.key_id)
            .join(KeyRow, KeyRow.id == SessionRow.key_id)
            .where(SessionRow.id_hash == _hash(token), SessionRow.expires_at > now, KeyRow.revoked_at.is_(None))
            .where(or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > now))
        )
        async with self._database.session() as sql:
            found = (await sql.execute(query)).one_or_none()
        return Visitor(await self.keys.get(found.key_id), found.csrf_token) if found else None

    async def close(self, token: str) -> None:
        async with self._database.session() as sql:
            await sql.execute(delete(SessionRow).where(SessionRow.id_hash == _hash(token)))


class Throttle:
    """At most ``limit`` failures per address and window; then nothing is tried until the window has passed."""

    def __init__(self, limit: int = 10, window: float = 300.0) -> None:
        self.limit, self.window = limit, window
        self._failures: dict[str, list[float]] = {}

    def check(self, address: str) -> None:
        """Raises `RateLimitError` for an address that has failed too often."""
        failures = self._recent(address)
        if len(failures) >= self.limit:
            wait = failures[0] + self.window - time.monotonic()
            raise RateLimitError("too many failed sign-ins; try again in a few minutes", retry_after=wait)

    def failed(self, address: str) -> None:
        for other in list(self._failures):
            if not self._recent(other):
                del self._failures[other]
        self._failures[address] = [*self._recent(address), time.monotonic()]

    def _recent(self, address: str) -> list[float]:
        since = time.monotonic() - self.window
        return [at for at in self._failures.get(address, []) if at > since]


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
