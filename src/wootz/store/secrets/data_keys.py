"""Keys for what lies in the platform's database and beside it: one for each day and process, locked by the master key.

That database is read by more people, and copied to more places, than the secrets' file. So these keys lie there locked,
and what opens them does not. A key goes when what it may have sealed is gone: what backups or free pages still hold of
that is of no use once the keys' rows are gone from there too. Another master key means to lock these few keys anew
(`DataKeys.rewrap`), and nothing that they sealed.

Each process makes its own, so nobody waits for another one, and 2^32 sealings with random nonces under one key (NIST
SP 800-38D, 8.3) are far.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Column, LargeBinary, String, Table, delete, exists, select, update

from wootz.core import ConfigError, UnavailableError, WootzError
from wootz.core.wire import new_id
from wootz.store import Base, Database, UtcDateTime
from wootz.store.secrets.envelope import KEY_BYTES, KeyWrapper, decrypt, encrypt, rewrapped

log = logging.getLogger(__name__)

SLACK = timedelta(days=2)
"""A key outlives the first thing that it seals by so much, and so the last one of its day."""
PAUSE = timedelta(minutes=1)
"""After a key could not be made. Answers wait for it, and a key service that is away takes seconds to say so."""
MANY = 256
"""Opened keys that a process remembers."""


def key_table(name: str) -> Table:
    return Table(
        name,
        Base.metadata,
        Column("id", String, primary_key=True),
        Column("expires_at", UtcDateTime, nullable=False),
        Column("wrapped_key", LargeBinary, nullable=False),
    )


@dataclass(frozen=True)
class DataKey:
    id: str
    key: bytes = field(repr=False)
    expires_at: datetime

    def seal(self, text: str, context: bytes) -> bytes:
        return encrypt(self.key, text.encode(), context)

    def open(self, sealed: bytes, context: bytes) -> str:
        """Raises `ConfigError` for what was changed, or sealed in another context."""
        try:
            return decrypt(self.key, sealed, context).decode()
        except InvalidTag:
            raise ConfigError(
                "it is not what was stored under this id", hint="its row was changed, or another's was put there"
            ) from None


class DataKeys:
    """``of`` says what they are for, and is bound to each. ``wrapper`` gives the master key, when it is needed; it may
    take its time, or raise `ConfigError`."""

    def __init__(
        self,
        database: Database,
        table: Table,
        of: str,
        wrapper: Callable[[], KeyWrapper],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.database, self._table, self._of, self._wrapper, self._clock = database, table, of, wrapper, clock
        self._todays: DataKey | None = None
        self._made_at = self._failed_at = datetime.min.replace(tzinfo=UTC)
        self._one_makes_it = asyncio.Lock()
        self._opened: dict[str, DataKey] = {}

    async def todays(self, until: datetime) -> DataKey:
        """To seal what is kept until then. Durable when it returns, so nothing is ever without its key.

        Where no new one can be made, the one before does as long as it is good for that. Else raises `ConfigError`
        where the master key can't be had, `UnavailableError` without the database.
        """
        async with self._one_makes_it:
            now, key = self._clock(), self._todays
            key = None if key is None or key.expires_at < until else key
            if key is None or self._made_at.date() != now.date():
                if now - self._failed_at >= PAUSE:
                    try:
                        key = self._todays = await self._make(until + SLACK)
                        self._made_at = now
                    except WootzError as error:
                        self._failed_at = now
                        if key is None:
                            raise
                        log.warning("%ss: no new one, so the one before seals on: %s", self._of, error)
                elif key is None:
                    raise UnavailableError("there was no key for it a moment ago")
            return key

    async def find(self, id: str) -> DataKey:
        """Raises `ConfigError` where it is gone, or the master key is another one."""
        if (known := self._opened.get(id)) is not None:
            return known
        async with self.database.session() as session:
            row = (await session.execute(select(self._table).where(self._table.c.id == id))).one_or_none()
        if row is None:
            raise ConfigError("the key that it was sealed with is no longer in the database")
        return self._remember(DataKey(id, await self._unwrap(row), row.expires_at))

    async def check(self) -> None:
        """Raises `ConfigError` where the master key is not the one that locked these: before it locks others."""
        newest = select(self._table).order_by(self._table.c.expires_at.desc()).limit(1)
        async with self.database.session() as session:
            row = (await session.execute(newest)).one_or_none()
        if row is not None:
            await self._unwrap(row)

    async def sweep(self, now: datetime, *used_in: Column[Any]) -> None:
        """Delete the keys that are over, but for those whose ids stand in one of these columns."""
        c = self._table.c
        free = [~exists().where(column == c.id) for column in used_in]
        async with self.database.session() as session:
            gone = delete(self._table).where(c.expires_at <= now, *free).returning(c.id)
            for id in (await session.scalars(gone)).all():
                self._opened.pop(id, None)

    async def rewrap(self, old: KeyWrapper) -> int:
        """Lock with the present master key what ``old`` locked; returns how many. All of them or, raising, none."""
        number = 0
        async with self.database.session() as session:
            for row in (await session.execute(select(self._table))).all():
                wrapped = await asyncio.to_thread(rewrapped, row.wrapped_key, self._bound(row.id), self._wrapper(), old)
                if wrapped is not None:
                    of_it = update(self._table).where(self._table.c.id == row.id)
                    await session.execute(of_it.values(wrapped_key=wrapped))
                    number += 1
        return number

    async def lost(self) -> list[str]:
        """The keys that another master key has locked. Raises `ConfigError` where the present one can't be asked."""
        probe = b"wootz probe"
        await asyncio.to_thread(lambda: self._wrapper().unwrap(self._wrapper().wrap(bytes(KEY_BYTES), probe), probe))
        async with self.database.session() as session:
            rows = (await session.execute(select(self._table))).all()
        lost = list[str]()
        for row in rows:
            try:
                await self._unwrap(row)
            except ConfigError:
                lost.append(row.id)
        return lost

    async def _make(self, expires_at: datetime) -> DataKey:
        made = DataKey(new_id("dk"), AESGCM.generate_key(8 * KEY_BYTES), expires_at)
        wrapped = await asyncio.to_thread(lambda: self._wrapper().wrap(made.key, self._bound(made.id)))
        row = {"id": made.id, "expires_at": expires_at, "wrapped_key": wrapped}
        await self.database.insert({self._table: [row]})
        return self._remember(made)

    async def _unwrap(self, row: Any) -> bytes:
        return await asyncio.to_thread(lambda: self._wrapper().unwrap(row.wrapped_key, self._bound(row.id)))

    def _remember(self, key: DataKey) -> DataKey:
        if len(self._opened) >= MANY:
            self._opened.clear()
        self._opened[key.id] = key
        return key

    def _bound(self, id: str) -> bytes:
        return json.dumps([self._of, id]).encode()
