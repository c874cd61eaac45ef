"""The keys of stored bodies: one for each day and process, locked by the master key of `wootz.store.secrets`.

Bodies lie in the platform's database, which is read by more people, and copied to more places, than the secrets' file.
So their keys lie there locked, and what opens them does not. A key is not older than a day and goes with the last body
that it may have sealed: what backups or free pages still hold of bodies is of no use once their keys' rows are gone
from there too. Another master key means to lock these few keys anew (`rewrap`), and no body.

Each process makes its own, so nobody waits for another one, and 2^32 bodies with random nonces under one key (NIST
SP 800-38D, 8.3) are far.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Column, LargeBinary, String, Table, delete, select, update

from wootz.core import ConfigError, UnavailableError, WootzError
from wootz.core.wire import new_id
from wootz.store import Base, Database, UtcDateTime
from wootz.store.secrets.envelope import KEY_BYTES, KeyWrapper, decrypt, encrypt, rewrapped

body_keys = Table(
    "body_keys",
    Base.metadata,
    Column("id", String, primary_key=True),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("wrapped_key", LargeBinary, nullable=False),
)

SLACK = timedelta(days=2)
"""A key outlives the first body that it seals by so much, and so the last one of its day."""
PAUSE = timedelta(minutes=1)
"""After a key could not be made. Answers wait for it, and a key service that is away takes seconds to say so."""


@dataclass(frozen=True)
class BodyKey:
    id: str
    key: bytes
    expires_at: datetime

    def seal(self, text: str, context: bytes) -> bytes:
        return encrypt(self.key, text.encode(), context)

    def open(self, sealed: bytes, context: bytes) -> str:
        try:
            return decrypt(self.key, sealed, context).decode()
        except InvalidTag:
            raise ConfigError(
                "it is not what was stored for this request", hint="its row was changed, or another's was put there"
            ) from None


class BodyKeys:
    """``wrapper`` gives the master key, when it is needed; it may take its time, or raise `ConfigError`."""

    def __init__(
        self,
        database: Database,
        wrapper: Callable[[], KeyWrapper],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.database, self._wrapper, self._clock = database, wrapper, clock
        self._todays: BodyKey | None = None
        self._made_at = self._failed_at = datetime.min.replace(tzinfo=UTC)
        self._one_makes_it = asyncio.Lock()

    async def todays(self, until: datetime) -> BodyKey:
        """To seal what is kept until then. Durable when it returns, so no body is ever without its key.

        Raises `ConfigError` where the master key can't be had, `UnavailableError` without the database.
        """
        async with self._one_makes_it:
            now, key = self._clock(), self._todays
            if key is None or self._made_at.date() != now.date() or key.expires_at < until:
                if now - self._failed_at < PAUSE:
                    raise UnavailableError("there was no key for it a moment ago")
                try:
                    key = await self._make(until + SLACK)
                except WootzError:
                    self._failed_at = now
                    raise
                self._todays, self._made_at = key, now
            return key

    async def find(self, id: str) -> BodyKey:
        """Raises `ConfigError` where it is gone, or the master key is another one."""
        async with self.database.session() as session:
            row = (await session.execute(select(body_keys).where(body_keys.c.id == id))).one_or_none()
        if row is None:
            raise ConfigError("the key that it was sealed with is no longer in the database")
        key = await asyncio.to_thread(lambda: self._wrapper().unwrap(row.wrapped_key, _context(id)))
        return BodyKey(id, key, row.expires_at)

    async def sweep(self, now: datetime) -> None:
        async with self.database.session() as session:
            await session.execute(delete(body_keys).where(body_keys.c.expires_at <= now))

    async def rewrap(self, old: KeyWrapper) -> int:
        """Lock with the present master key what ``old`` locked; returns how many. All of them or, raising, none."""
        number = 0
        async with self.database.session() as session:
            for row in (await session.execute(select(body_keys))).all():
                wrapped = await asyncio.to_thread(rewrapped, row.wrapped_key, _context(row.id), self._wrapper(), old)
                if wrapped is not None:
                    of_it = update(body_keys).where(body_keys.c.id == row.id)
                    await session.execute(of_it.values(wrapped_key=wrapped))
                    number += 1
        return number

    async def _make(self, expires_at: datetime) -> BodyKey:
        made = BodyKey(new_id("bk"), AESGCM.generate_key(8 * KEY_BYTES), expires_at)
        wrapped = await asyncio.to_thread(lambda: self._wrapper().wrap(made.key, _context(made.id)))
        row = {"id": made.id, "expires_at": expires_at, "wrapped_key": wrapped}
        await self.database.insert({body_keys: [row]})
        return made


def _context(id: str) -> bytes:
    return json.dumps(["wootz body key", id]).encode()
