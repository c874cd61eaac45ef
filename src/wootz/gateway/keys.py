"""Virtual keys: who may call, which models, how often.

A key is 256 random bits, shown once when it is made. Kept is its SHA-256 only: a guess-proof secret needs no slow hash
(those protect passwords that people choose), and a fast one may run on every request. Looking the hash up in an index
gives an attacker no useful timing, since they cannot steer the hash; the stored one is still compared in
constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import JSON, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from wootz.core import AuthenticationError, BadRequestError, NotFoundError
from wootz.core.wire import new_id
from wootz.store import Base, Database, UtcDateTime

TOKEN_PREFIX = "sk-wootz-"
SCOPES = ("inference", "admin")
"""``admin`` implies the rest."""

ADMIN_KEY_NAME = "admin"
MAX_NAME_CHARS = 100
FAR_FUTURE = datetime(9000, 1, 1, tzinfo=UTC)  # So that no time zone can push it out of the calendar.


@dataclass(frozen=True)
class Key:
    """``models=None`` means every model; ``requests_per_minute=None`` means no limit."""

    id: str
    name: str
    prefix: str
    """The token's first characters, by which a person recognises it."""
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    requests_per_minute: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @property
    def is_admin(self) -> bool:
        return "admin" in self.scopes

    def may(self, scope: str) -> bool:
        return scope in self.scopes or self.is_admin

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


class KeyRow(Base):
    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str] = mapped_column(unique=True)
    prefix: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(JSON)
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    requests_per_minute: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    def to_key(self) -> Key:
        return Key(
            id=self.id,
            name=self.name,
            prefix=self.prefix,
            scopes=tuple(self.scopes),
            models=None if self.models is None else tuple(self.models),
            requests_per_minute=self.requests_per_minute,
            created_at=self.created_at,
            expires_at=self.expires_at,
            revoked_at=self.revoked_at,
        )


class KeyStore:
    """Every answer comes from the database, so a key that another process revokes is refused at once."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def create(
        self,
        name: str,
        *,
        scopes: Sequence[str] = ("inference",),
        models: Sequence[str] | None = None,
        requests_per_minute: int | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[Key, str]:
        """The key and its token, which nobody can learn again. Raises `BadRequestError` for a name in use.

        The name of a revoked key stays in use, so that a name in a report always means one key.
        """
        _validate(name, scopes, models, requests_per_minute, expires_at)
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        row = KeyRow(
            id=new_id("key"),
            name=name,
            hash=_hash(token),
            prefix=token[: len(TOKEN_PREFIX) + 4],
            scopes=list(scopes),
            models=None if models is None else list(models),
            requests_per_minute=requests_per_minute,
            created_at=datetime.now(UTC),
            expires_at=expires_at,
            revoked_at=None,
        )
        try:
            async with self.database.session() as session:
                session.add(row)
        except IntegrityError:
            raise BadRequestError(
                f'a key named "{name}" exists already (revoked ones count)', code="name_taken", param="name"
            ) from None
        return row.to_key(), token

    async def authenticate(self, token: str) -> Key:
        """The key behind a token. Raises `AuthenticationError` for an unknown, a revoked and an expired one."""
        digest = _hash(token)
        async with self.database.session() as session:
            row = await session.scalar(select(KeyRow).where(KeyRow.hash == digest))
        if row is None or not hmac.compare_digest(row.hash, digest):
            raise AuthenticationError("this API key is not known")
        if row.revoked_at is not None:
            raise AuthenticationError("this API key was revoked", code="api_key_revoked")
        if row.expires_at is not None and row.expires_at <= datetime.now(UTC):
            raise AuthenticationError("this API key has expired", code="api_key_expired")
        return row.to_key()

    async def get(self, id_or_name: str) -> Key:
        """Also one that was revoked or has expired. Raises `NotFoundError`."""
        async with self.database.session() as session:
            row = await session.scalar(select(KeyRow).where(or_(KeyRow.id == id_or_name, KeyRow.name == id_or_name)))
        if row is None:
            raise NotFoundError(f'no key has the id or name "{id_or_name[:MAX_NAME_CHARS]}"', code="key_not_found")
        return row.to_key()

    async def list(self) -> list[Key]:
        """All keys, oldest first, the revoked ones too."""
        async with self.database.session() as session:
            rows = await session.scalars(select(KeyRow).order_by(KeyRow.created_at, KeyRow.id))
            return [row.to_key() for row in rows]

    async def revoke(self, id_or_name: str) -> Key:
        """Refuse the key from now on, for ever. Revoking twice keeps the first time. Raises `NotFoundError`."""
        async with self.database.session() as session:
            named = or_(KeyRow.id == id_or_name, KeyRow.name == id_or_name)
            printable = id_or_name.isprintable()  # PostgreSQL has no text with a zero character, not even to compare.
            row = await session.scalar(select(KeyRow).where(named).with_for_update()) if printable else None
            if row is None:
                raise NotFoundError(f'no key has the id or name "{id_or_name[:MAX_NAME_CHARS]}"', code="key_not_found")
            row.revoked_at = row.revoked_at or datetime.now(UTC)
        return row.to_key()

    async def ensure_admin(self) -> str | None:
        """The token of a new admin key when there is no key at all, else None."""
        async with self.database.session() as session:
            if await session.scalar(select(KeyRow.id).limit(1)) is not None:
                return None
        try:
            _, token = await self.create(ADMIN_KEY_NAME, scopes=("admin",))
        except BadRequestError:  # Another process was faster.
            return None
        return token


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _validate(
    name: str,
    scopes: Sequence[str],
    models: Sequence[str] | None,
    requests_per_minute: int | None,
    expires_at: datetime | None,
) -> None:
    if not name.strip() or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise BadRequestError(f"a key's name has 1 to {MAX_NAME_CHARS} printable characters", param="name")
    if not scopes or any(scope not in SCOPES for scope in scopes):
        raise BadRequestError(f"a key's scopes are one or more of {', '.join(SCOPES)}", param="scopes")
    if models is not None and not models:
        raise BadRequestError("an empty list of models would allow none; leave it out to allow all", param="models")
    if requests_per_minute is not None and not 1 <= requests_per_minute < 2**31:
        raise BadRequestError("requests per minute must be at least 1", param="requests_per_minute")
    if expires_at is not None and (expires_at.tzinfo is None or not datetime.now(UTC) < expires_at < FAR_FUTURE):
        raise BadRequestError("the time of expiry must name its time zone and lie in the future", param="expires_at")
