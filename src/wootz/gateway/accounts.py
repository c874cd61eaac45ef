"""Teams, users and tags: what keys belong to, each with limits of its own over all its keys.

A tag is a name with a value, ``feature=support``, that a key carries: what the key does is reported under it and,
where the tag has limits here, limited by it. Clients can't set or drop a key's tags, so they can't get round them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import JSON, Index, UniqueConstraint, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from wootz.core import BadRequestError, NotFoundError
from wootz.core.wire import new_id
from wootz.gateway.identity.attributes import NO_ATTRIBUTES, Attributes
from wootz.gateway.limits import Limits, Subject
from wootz.store import Base, UtcDateTime

AccountKind = Literal["team", "user", "tag"]
KINDS: tuple[AccountKind, ...] = get_args(AccountKind)
MAX_NAME_CHARS = 100
NO_ACCOUNT = "a user who is no account"
"""For the audit log, of somebody who is only a name in requests."""
_TAG_NAME = re.compile(r"[A-Za-z0-9_.-]{1,50}")


@dataclass(frozen=True)
class Account:
    kind: AccountKind
    id: str
    name: str
    limits: Limits
    created_at: datetime
    attributes: Attributes = NO_ATTRIBUTES

    @property
    def subject(self) -> Subject:
        return Subject(self.kind, self.id, self.name, self.limits)


class AccountRow(Base):
    __tablename__ = "accounts"
    __table_args__ = (UniqueConstraint("kind", "name"), Index("ix_accounts_lower_name", text("lower(name)")))

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    limits: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    attributes: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))

    def to_account(self) -> Account:
        assert self.kind in KINDS
        attributes = Attributes.parse(self.attributes)
        return Account(self.kind, self.id, self.name, Limits.parse(self.limits), self.created_at, attributes)


async def create_account(session: AsyncSession, kind: AccountKind, name: str, limits: Limits) -> Account:
    """Raises `BadRequestError` for a name in use, or one that is none."""
    check_name(name, f"a {kind}'s name")
    if kind == "tag":
        check_tags(dict([split_tag(name)]))
    row = AccountRow(id=new_id(kind), kind=kind, name=name, limits=limits.plain, created_at=datetime.now(UTC))
    session.add(row)
    try:
        await session.flush()
    except IntegrityError:
        raise BadRequestError(f'a {kind} named "{name}" exists already', code="name_taken", param="name") from None
    return row.to_account()


async def find_account(session: AsyncSession, kind: AccountKind, id_or_name: str) -> AccountRow:
    """Raises `NotFoundError`."""
    named = (AccountRow.id == id_or_name) | (AccountRow.name == id_or_name)
    query = select(AccountRow).where(AccountRow.kind == kind, named)
    if not id_or_name.isprintable() or (row := await session.scalar(query)) is None:
        raise NotFoundError(f'no {kind} has the id or name "{id_or_name[:MAX_NAME_CHARS]}"', code=f"{kind}_not_found")
    return row


async def list_accounts(session: AsyncSession, kind: AccountKind) -> Sequence[Account]:
    query = select(AccountRow).where(AccountRow.kind == kind).order_by(AccountRow.created_at, AccountRow.id)
    return [row.to_account() for row in await session.scalars(query)]


def check_name(name: str, what: str) -> None:
    if not name.strip() or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise BadRequestError(f"{what} has 1 to {MAX_NAME_CHARS} printable characters", param="name")


def check_tags(tags: dict[str, str]) -> None:
    for name, value in tags.items():
        if not _TAG_NAME.fullmatch(name) or not value or len(value) > MAX_NAME_CHARS or not value.isprintable():
            raise BadRequestError(
                f'"{name[:50]}={value[:50]}" is no tag: a name of letters, digits and _ . -, and a printable value',
                param="tags",
            )


def split_tag(text: str) -> tuple[str, str]:
    """``feature=support`` in its two parts. Raises `BadRequestError`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise BadRequestError(f'"{text[:MAX_NAME_CHARS]}" is no tag', param="name", hint="write it as feature=support")
    return name, value
