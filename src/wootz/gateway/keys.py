"""Virtual keys: who may call, which models, and what it may use up.

A key is 256 random bits, shown once when it is made. Kept is its SHA-256 only: a guess-proof secret needs no slow hash
(those protect passwords that people choose), and a fast one may run on every request. Looking the hash up in an index
gives an attacker no useful timing, since they cannot steer the hash; the stored one is still compared in
constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from sqlalchemy import JSON, ForeignKey, and_, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from wootz.core import AuthenticationError, BadRequestError, ConfigError, NotFoundError
from wootz.core.acting import actor
from wootz.core.wire import new_id
from wootz.gateway import accounts
from wootz.gateway.accounts import MAX_NAME_CHARS, Account, AccountKind, AccountRow
from wootz.gateway.identity.attributes import NO_ATTRIBUTES, Attributes, Standing
from wootz.gateway.identity.roles import ROLE_NAMES, Permission, permissions
from wootz.gateway.identity.rows import PersonRow, held
from wootz.gateway.key_cache import KeyCache
from wootz.gateway.limits import NO_LIMITS, Limits, Subject
from wootz.store import Base, Database, UtcDateTime
from wootz.store.audit import AuditLog

TOKEN_PREFIX = "sk-wootz-"
SCOPES = ROLE_NAMES
"""A key's scopes are roles; ``admin`` implies the rest."""

ADMIN_KEY_NAME = "admin"
MASTER_KEY = "master"
"""Id and name of the key that the config sets (`KeyStore.set_master`)."""
SHORTEST_TOKEN = 32
"""Characters of a token that somebody else chose."""
FAR_FUTURE = datetime(9000, 1, 1, tzinfo=UTC)  # So that no time zone can push it out of the calendar.


@dataclass(frozen=True)
class Key:
    """``models=None`` means every model."""

    id: str
    name: str
    prefix: str
    """The token's first characters, by which a person recognises it."""
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    limits: Limits = NO_LIMITS
    team: Account | None = None
    user: Account | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    limited_tags: tuple[Account, ...] = ()
    """Those of its tags that have limits."""
    rotated_until: datetime | None = None
    """Until when the token before this one holds too."""
    attributes: Attributes = NO_ATTRIBUTES

    @property
    def is_admin(self) -> bool:
        return "admin" in self.scopes

    @property
    def requests_per_minute(self) -> int | None:
        return self.limits.requests_per_minute

    @property
    def tenant(self) -> str:
        """What may share cached answers."""
        return self.team.id if self.team else self.id

    @cached_property
    def subjects(self) -> Sequence[Subject]:
        """All whose limits hold for its requests."""
        others = [account for account in (self.team, self.user, *self.limited_tags) if account is not None]
        return (Subject("key", self.id, self.name, self.limits), *(account.subject for account in others))

    @cached_property
    def limited(self) -> Sequence[Subject]:
        """Those of them who have limits."""
        return [subject for subject in self.subjects if subject.limits.any]

    @cached_property
    def counts_tokens(self) -> bool:
        return any(subject.limits.counts_tokens for subject in self.limited)

    @cached_property
    def counts_money(self) -> bool:
        return any(subject.limits.counts_money for subject in self.limited)

    @cached_property
    def standing(self) -> Standing:
        """The attributes that hold for its requests: its own, its user's and its team's."""
        accounts = [account for account in (self.team, self.user) if account is not None]
        return Standing.of([self.attributes, *(account.attributes for account in accounts)])

    @cached_property
    def permissions(self) -> frozenset[Permission]:
        return permissions(self.scopes)

    def may(self, permission: Permission) -> bool:
        return permission in self.permissions

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


class KeyRow(Base):
    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str] = mapped_column(unique=True)
    previous_hash: Mapped[str | None] = mapped_column(index=True)
    previous_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    prefix: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(JSON)
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    team_id: Mapped[str | None] = mapped_column(ForeignKey("accounts.id"), index=True)
    user_id: Mapped[str | None] = mapped_column(ForeignKey("accounts.id"), index=True)
    tags: Mapped[dict[str, str]] = mapped_column(JSON)
    limits: Mapped[dict[str, Any]] = mapped_column(JSON)
    attributes: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class KeyStore:
    """Keys and the accounts that they belong to.

    What a token is good for is kept for `KeyCache.SECONDS`: a change made through this object holds at once, one of
    another process within that time.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.cache = KeyCache(self._find)
        self.audit = AuditLog(database)

    # --- making and changing --------------------------------------------------------------------------------------

    async def create(
        self,
        name: str,
        *,
        scopes: Sequence[str] = ("inference",),
        models: Sequence[str] | None = None,
        expires_at: datetime | None = None,
        team: str | None = None,
        user: str | None = None,
        tags: Mapping[str, str] | None = None,
        attributes: Mapping[str, Any] | None = None,
        token: str | None = None,
        **limits: Any,
    ) -> tuple[Key, str]:
        """The key and its token, which nobody can learn again. Raises `BadRequestError` for a name in use.

        ``team`` and ``user`` are names or ids of accounts; ``limits`` are the fields of `Limits`; a ``token`` is only
        given when it was made elsewhere. The name of a revoked key stays in use, so that a name in a report always
        means one key.
        """
        accounts.check_name(name, "a key's name")
        fields = _checked({"scopes": scopes, "models": models, "expires_at": expires_at, "tags": tags or {}})
        fields["attributes"] = dict(attributes) if attributes else None
        fields["limits"] = Limits.parse(limits).plain
        token = _new_token() if token is None else _good_token(token)
        try:
            async with self.database.session() as session:
                fields |= await _memberships(session, {"team": team, "user": user})
                row = KeyRow(
                    id=new_id("key"),
                    name=name,
                    hash=_hash(token),
                    prefix=_prefix(token),
                    created_at=datetime.now(UTC),
                    **fields,
                )
                session.add(row)
                await self._tell(session, "key.created", row.id, {"scopes": list(scopes), "models": row.models})
        except IntegrityError:
            raise BadRequestError(
                f'a key named "{name}" exists already (revoked ones count)', code="name_taken", param="name"
            ) from None
        return await self.get(row.id), token

    async def update(self, id_or_name: str, **changes: Any) -> Key:
        """Any of `create`'s fields but the name and the token. Limits that are given replace all that were set."""
        limits = {name: changes.pop(name) for name in list(changes) if name in Limits.model_fields}
        membership = {kind: changes.pop(kind) for kind in ("team", "user") if kind in changes}
        fields = _checked(changes)
        if limits:
            fields["limits"] = Limits.parse(limits).plain
        told = sorted(fields | membership)
        async with self.database.session() as session:
            fields |= await _memberships(session, membership)  # First: who ends a person holds them, then their keys.
            row = await _find_row(session, id_or_name)
            for column, value in fields.items():
                setattr(row, column, value)
            await self._tell(session, "key.changed", row.id, {"fields": told})
        self.cache.clear()
        return await self.get(row.id)

    async def rotate(self, id_or_name: str, overlap: timedelta, *, token: str | None = None) -> tuple[Key, str]:
        """A new token; the one before holds as long as ``overlap`` too, any older one no more."""
        token = _new_token() if token is None else _good_token(token)
        async with self.database.session() as session:
            row = await _find_row(session, id_or_name)
            if row.revoked_at is not None or row.id == MASTER_KEY:
                raise BadRequestError(f'key "{row.name}" can\'t be rotated: it is revoked, or set in the config')
            row.previous_hash, row.previous_expires_at = row.hash, datetime.now(UTC) + overlap
            row.hash, row.prefix = _hash(token), _prefix(token)
            await self._tell(session, "key.rotated", row.id, {"overlap_seconds": overlap.total_seconds()})
        self.cache.clear()
        return await self.get(row.id), token

    async def revoke(self, id_or_name: str) -> Key:
        """Refuse the key from now on, for ever. Revoking twice keeps the first time. Raises `NotFoundError`."""
        async with self.database.session() as session:
            row = await _find_row(session, id_or_name)
            if row.id == MASTER_KEY:
                raise BadRequestError("the master key is set in the config", hint="change server.master_key")
            row.revoked_at = row.revoked_at or datetime.now(UTC)
            await self._tell(session, "key.revoked", row.id)
        self.cache.clear()
        return await self.get(row.id)

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

    async def set_master(self, token: str | None) -> None:
        """The administrator's key that the config holds a reference to, or none: then the one before is revoked.

        Raises `ConfigError` for one that could be guessed.
        """
        if token is not None and len(token) < SHORTEST_TOKEN:
            raise ConfigError(f"server.master_key must have at least {SHORTEST_TOKEN} characters")
        async with self.database.session() as session:
            row = await session.get(KeyRow, MASTER_KEY)
            if token is None:
                if row is not None and row.revoked_at is None:
                    row.revoked_at = datetime.now(UTC)
                    await self._tell(session, "key.revoked", MASTER_KEY)
                return
            if row is None:
                row = KeyRow(
                    id=MASTER_KEY, name=MASTER_KEY, scopes=["admin"], models=None, tags={}, limits={},
                    created_at=datetime.now(UTC),
                )  # fmt: skip
                session.add(row)
            if (row.hash, row.revoked_at) != (_hash(token), None):
                row.hash, row.prefix, row.revoked_at = _hash(token), "(config)", None
                await self._tell(session, "key.master_set", MASTER_KEY)

    # --- teams, users, tags ---------------------------------------------------------------------------------------

    async def create_account(self, kind: AccountKind, name: str, **limits: Any) -> Account:
        async with self.database.session() as session:
            account = await accounts.create_account(session, kind, name, Limits.parse(limits))
            await self._tell(session, f"{kind}.created", account.id, account.limits.plain)
        self.cache.clear()  # A tag that keys carry already may have got its limits.
        return account

    async def limit_account(self, kind: AccountKind, id_or_name: str, **limits: Any) -> Account:
        """These limits instead of those it had."""
        async with self.database.session() as session:
            row = await accounts.find_account(session, kind, id_or_name)
            row.limits = Limits.parse(limits).plain
            await self._tell(session, f"{kind}.limited", row.id, row.limits)
        self.cache.clear()
        return row.to_account()

    async def delete_account(self, kind: AccountKind, id_or_name: str) -> Account:
        """Raises `BadRequestError` while a key belongs to it (also a revoked one: its requests are still reported)."""
        try:
            async with self.database.session() as session:
                row = await accounts.find_account(session, kind, id_or_name)
                await session.delete(row)
                await self._tell(session, f"{kind}.deleted", row.id)
        except IntegrityError:
            raise BadRequestError(f'{kind} "{id_or_name}" has keys', code="account_in_use") from None
        self.cache.clear()
        return row.to_account()

    async def describe_account(self, kind: AccountKind, id_or_name: str, attributes: Attributes) -> Account:
        """These attributes instead of those it had."""
        async with self.database.session() as session:
            row = await accounts.find_account(session, kind, id_or_name)
            row.attributes = attributes.plain or None
            await self._tell(session, f"{kind}.described", row.id, attributes.plain)
        self.cache.clear()
        return row.to_account()

    async def list_accounts(self, kind: AccountKind) -> Sequence[Account]:
        async with self.database.session() as session:
            return await accounts.list_accounts(session, kind)

    async def _tell(
        self, session: AsyncSession, action: str, subject: str, detail: Mapping[str, Any] | None = None
    ) -> None:
        await self.audit.append(actor=actor(), action=action, subject=subject, detail=detail, session=session)

    # --- finding --------------------------------------------------------------------------------------------------

    async def authenticate(self, token: str) -> Key:
        """The key behind a token. Raises `AuthenticationError` for an unknown, a revoked and an expired one."""
        digest, now = _hash(token), datetime.now(UTC)
        if (known := await self.cache.get(digest)) is None or not hmac.compare_digest(known.hash, digest):
            raise AuthenticationError("this API key is not known")
        if known.key.revoked_at is not None:
            raise AuthenticationError("this API key was revoked", code="api_key_revoked")
        expires, until = known.key.expires_at, known.until
        if (expires is not None and expires <= now) or (until is not None and until <= now):
            raise AuthenticationError("this API key has expired", code="api_key_expired")
        return known.key

    async def get(self, id_or_name: str) -> Key:
        """Raises `NotFoundError`."""
        async with self.database.session() as session:
            return (await _to_keys(session, [await _find_row(session, id_or_name)]))[0]

    async def has_secret(self, id_or_name: str, token: str) -> bool:
        """Whether this is the key's token (not the one that it was rotated away from)."""
        async with self.database.session() as session:
            row = await _find_row(session, id_or_name)
        return hmac.compare_digest(row.hash, _hash(token))

    async def list(self) -> list[Key]:
        """All keys, oldest first, the revoked ones too."""
        async with self.database.session() as session:
            rows = await session.scalars(select(KeyRow).order_by(KeyRow.created_at, KeyRow.id))
            return await _to_keys(session, rows.all())

    async def keys_of(self, subject: Subject) -> Sequence[str]:
        """The ids of all keys, revoked ones too, whose requests count for a key, team, user or tag."""
        if subject.kind == "key":
            return [subject.id]
        if subject.kind == "tag":
            name, value = accounts.split_tag(subject.name)
            return [key.id for key in await self.list() if key.tags.get(name) == value]
        column = KeyRow.team_id if subject.kind == "team" else KeyRow.user_id
        async with self.database.session() as session:
            return (await session.scalars(select(KeyRow.id).where(column == subject.id))).all()

    async def _find(self, digests: Sequence[str]) -> dict[str, Known]:
        matches = or_(KeyRow.hash.in_(digests), KeyRow.previous_hash.in_(digests))
        async with self.database.session() as session:
            rows = (await session.scalars(select(KeyRow).where(matches))).all()
            keys = await _to_keys(session, rows) if rows else []
        known: dict[str, Known] = {}
        for row, key in zip(rows, keys, strict=True):
            known[row.hash] = Known(key, row.hash, None)
            if row.previous_hash is not None:
                known[row.previous_hash] = Known(key, row.previous_hash, row.previous_expires_at)
        return known


@dataclass(frozen=True)
class Known:
    """What a token's hash was found to be."""

    key: Key
    hash: str
    until: datetime | None
    """When the token was rotated away: how long it still holds."""


async def _find_row(session: AsyncSession, id_or_name: str) -> KeyRow:
    named = or_(KeyRow.id == id_or_name, KeyRow.name == id_or_name)
    printable = id_or_name.isprintable()  # PostgreSQL has no text with a zero character, not even to compare.
    row = await session.scalar(select(KeyRow).where(named).with_for_update()) if printable else None
    if row is None:
        raise NotFoundError(f'no key has the id or name "{id_or_name[:MAX_NAME_CHARS]}"', code="key_not_found")
    return row


async def _to_keys(session: AsyncSession, rows: Sequence[KeyRow]) -> list[Key]:
    """With the teams, users and limited tags that they belong to."""
    ids = {id for row in rows for id in (row.team_id, row.user_id) if id is not None}
    tags = {f"{name}={value}" for row in rows for name, value in row.tags.items()}
    found: dict[str, Account] = {}
    if ids or tags:
        is_tag = and_(AccountRow.kind == "tag", AccountRow.name.in_(tags))
        for row in await session.scalars(select(AccountRow).where(or_(AccountRow.id.in_(ids), is_tag))):
            found[row.name if row.kind == "tag" else row.id] = row.to_account()
    return [
        Key(
            id=row.id,
            name=row.name,
            prefix=row.prefix,
            scopes=tuple(row.scopes),
            models=None if row.models is None else tuple(row.models),
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            limits=Limits.parse(row.limits),
            team=found[row.team_id] if row.team_id else None,
            user=found[row.user_id] if row.user_id else None,
            tags=row.tags,
            limited_tags=tuple(found[tag] for name, value in row.tags.items() if (tag := f"{name}={value}") in found),
            rotated_until=row.previous_expires_at,
            attributes=Attributes.parse(row.attributes),
        )
        for row in rows
    ]


async def _memberships(session: AsyncSession, names: Mapping[str, str | None]) -> dict[str, str | None]:
    """Names of a team and a user as the columns that hold their ids."""
    columns: dict[str, str | None] = {}
    for kind in ("team", "user"):
        if kind in names:
            name = names[kind]
            id = None if name is None else (await accounts.find_account(session, kind, name)).id
            if kind == "user" and id is not None:
                person = await held(session, PersonRow, id)
                if person is not None and not person.active:
                    raise BadRequestError(f'user "{name}" is deactivated', code="user_deactivated", param="user")
            columns[f"{kind}_id"] = id
    return columns


def _new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def _good_token(token: str) -> str:
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise BadRequestError(
            f"a key's secret has at least {SHORTEST_TOKEN} printable ASCII characters", param="secret"
        )
    return token


def _prefix(token: str) -> str:
    return token[: len(TOKEN_PREFIX) + 4] if token.startswith(TOKEN_PREFIX) else token[:4]


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields as the columns hold them. Raises `BadRequestError` for what makes no sense."""
    if "scopes" in fields:
        if not fields["scopes"] or any(scope not in SCOPES for scope in fields["scopes"]):
            raise BadRequestError(f"a key's scopes are one or more of {', '.join(SCOPES)}", param="scopes")
        fields = fields | {"scopes": list(fields["scopes"])}
    if (models := fields.get("models")) is not None:
        if not models:
            raise BadRequestError("an empty list of models would allow none; leave it out to allow all", param="models")
        fields = fields | {"models": list(models)}
    expires_at = fields.get("expires_at")
    if expires_at is not None and (expires_at.tzinfo is None or not datetime.now(UTC) < expires_at < FAR_FUTURE):
        raise BadRequestError("the time of expiry must name its time zone and lie in the future", param="expires_at")
    if (attributes := fields.get("attributes")) is not None:
        fields = fields | {"attributes": dict(attributes)}
    if "tags" in fields:
        fields = fields | {"tags": dict(fields["tags"])}
        accounts.check_tags(fields["tags"])
    return fields
