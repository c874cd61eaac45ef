"""The tables of people and groups, and how a row of theirs is held while it is changed."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import JSON, ColumnElement, ForeignKey, Index, false, func, inspect, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from wootz.core import NotFoundError
from wootz.store import Base, UtcDateTime


class PersonRow(Base):
    __tablename__ = "people"

    user_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), primary_key=True)
    subject: Mapped[str | None] = mapped_column(unique=True)
    """Issuer and subject of the identity provider, which never change, as names and addresses do."""
    external_id: Mapped[str | None] = mapped_column(index=True)
    active: Mapped[bool]
    granted: Mapped[list[str]] = mapped_column(JSON)
    """Roles that were given here, besides those of groups."""
    claimed_groups: Mapped[list[str]] = mapped_column(JSON)
    profile: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The rest of what SCIM says of them, as it says it."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    changed_at: Mapped[datetime] = mapped_column(UtcDateTime)


class GroupRow(Base):
    __tablename__ = "groups"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    external_id: Mapped[str | None] = mapped_column(index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    changed_at: Mapped[datetime] = mapped_column(UtcDateTime)


Index("ix_groups_lower_name", func.lower(GroupRow.name))


class MemberRow(Base):
    __tablename__ = "group_members"

    group_id: Mapped[str] = mapped_column(ForeignKey("groups.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("people.user_id"), primary_key=True, index=True)


def alike(column: Any, value: str, *, exact: bool) -> ColumnElement[bool]:
    """True for all that SCIM holds equal to ``value``: in Unicode's composed form, and unless ``exact`` in any case.

    It may be true for others, which whoever asks must look at: of letters that are not ASCII, and what they are
    composed of, databases know different things. (Three signs that compose to ASCII are not found: U+212A, 37E, 1FEF.)
    """
    value = unicodedata.normalize("NFC", value)
    if not exact:
        column, value = func.lower(column), value.lower()
    if re.search("[\0\ud800-\udfff]", value):  # PostgreSQL has no such text, not even to compare.
        return false()
    if value.isascii():
        return column == value
    sure = re.split(r"[\x00-\x7f]?[^\x00-\x7f]+", value)
    return column.like("%".join(re.sub(r"([\\%_])", r"\\\1", part) for part in sure), escape="\\")


Row = TypeVar("Row", PersonRow, GroupRow)


async def held(sql: AsyncSession, table: type[Row], id: str) -> Row | None:
    """The row as it is, and as it stays for everybody else until the transaction ends.

    It is written to first: on SQLite a read holds nothing, and what it read may be old when something is written.
    """
    if not id.isprintable():  # PostgreSQL has no text with a zero character, not even to compare.
        return None
    unchanged = update(table).where(inspect(table).primary_key[0] == id).values(external_id=table.external_id)
    await sql.execute(unchanged, execution_options={"synchronize_session": False})
    return await sql.get(table, id, populate_existing=True)


async def find(sql: AsyncSession, table: type[Row], id: str, *, hold: bool = False) -> Row:
    """Raises `NotFoundError`. To ``hold`` it is to be about to change it (`held`)."""
    row = await held(sql, table, id) if hold else (await sql.get(table, id) if id.isprintable() else None)
    if row is None:
        kind = "user" if table is PersonRow else "group"
        raise NotFoundError(f'there is no {kind} "{id[:64]}"', code=f"{kind}_not_found")
    return row
