"""What the gateway keeps for users is encrypted: kept responses, files, batches with what is under way of them, tasks.

Each row has its text in ``sealed``, and in ``sealed_with`` the id of the key of its day (`wootz.store.secrets`), which
the master key locks. What a row is of, its owner and its id are associated data: a row that somebody copied over
another one, or that was changed to be another key's, does not open. In plain are ids, times, sizes, states, models, and
who asked (by which ``wootz erase`` finds it).

Columns that held the text before are empty where there is ``sealed``. What older versions left in them is read, and
sealed when a server starts (`surfaces.kept_house`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Column, LargeBinary, String

from wootz.core import ConfigError
from wootz.store import Database
from wootz.store.secrets.data_keys import DataKey, DataKeys, key_table
from wootz.store.secrets.envelope import KeyWrapper

kept_keys = key_table("kept_keys")

BETWEEN = timedelta(hours=1)
"""The longest from when a key is chosen to when the row that names it is written."""


def sealed_columns() -> tuple[Column[Any], Column[Any]]:
    return Column("sealed", LargeBinary), Column("sealed_with", String, index=True)


@dataclass(frozen=True)
class Thing:
    """One thing that is kept: ``kind`` such as "response", whose (a key's id; empty without accounts), and its id."""

    kind: str
    owner: str
    id: str

    @property
    def context(self) -> bytes:
        return json.dumps([f"wootz {self.kind}", self.owner, self.id]).encode()


class Kept:
    """Seals what is kept, and opens it. ``wrapper`` gives the master key (`wootz.store.secrets.wrapper_of`)."""

    def __init__(self, database: Database, wrapper: Callable[[], KeyWrapper]) -> None:
        self.database = database
        self.keys = keys_of_kept(database, wrapper)

    async def check(self) -> None:
        """Raises `ConfigError` where this master key is not the one that the newest was kept with."""
        try:
            await self.keys.check()
        except ConfigError as error:
            raise ConfigError(
                f"what is kept for users can't be opened: {error.message}",
                hint="give the master key that it was kept with (secrets.master_key), or after a change of it `wootz "
                "secrets rewrap`; if it is lost, `wootz secrets give-up` deletes what was kept with it",
            ) from None

    async def key(self) -> DataKey:
        """To seal what is kept from now on. Raises `WootzError` where there is none; then nothing is to be kept."""
        return await self.keys.todays(datetime.now(UTC) + BETWEEN)

    def seal(self, key: DataKey, thing: Thing, text: str) -> dict[str, Any]:
        """The values of the row's `sealed_columns`."""
        return {"sealed": key.seal(text, thing.context), "sealed_with": key.id}

    async def open(self, thing: Thing, row: Any) -> str | None:
        """What was sealed; None where the row is of before. Raises `ConfigError` for what does not open."""
        if row.sealed is None:
            return None
        with telling(thing):
            return (await self.keys.find(row.sealed_with)).open(row.sealed, thing.context)


def keys_of_kept(database: Database, wrapper: Callable[[], KeyWrapper]) -> DataKeys:
    return DataKeys(database, kept_keys, "wootz kept key", wrapper)


@contextmanager
def telling(thing: Thing) -> Iterator[None]:
    """What can't be opened inside of the block is told by its kind and id."""
    try:
        yield
    except ConfigError as error:
        message = f"{thing.kind} {thing.id} can't be opened: {error.message}"
        raise type(error)(message, hint=error.hint) from None
