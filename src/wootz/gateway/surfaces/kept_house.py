"""What becomes of the things that the gateway keeps: those of before they were encrypted are sealed where they lie
when a server starts; what has expired goes; a key goes when nothing names it any more.

Until they are sealed, those of before are read as they are. Where that can't be done, for want of a master key, they
stay so. Replicas may do it at the same time: a row is sealed by who comes first, and a file with the key that its row
was given before. Batches that have not ended are left to who works on them (`BatchStore.claim`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Table, delete, select, update

from wootz.core import Config, WootzError
from wootz.gateway.kept import Thing, kept_keys, keys_of_kept
from wootz.gateway.surfaces.batch_store import OPEN, batches
from wootz.gateway.surfaces.file_store import FileStore, files
from wootz.gateway.surfaces.response_store import ResponseStore, responses, sealed_response
from wootz.gateway.tasks import TaskRow
from wootz.store import Database
from wootz.store.secrets.data_keys import DataKey
from wootz.store.secrets.envelope import KeyWrapper

if TYPE_CHECKING:
    from wootz.gateway.gateway import Gateway

log = logging.getLogger(__name__)

SWEEP_SECONDS = 3600.0
PAGE = 100

tasks = TaskRow.metadata.tables[TaskRow.__tablename__]
TABLES = (responses, files, batches, tasks)


async def keep_house(gateway: Gateway) -> None:
    """For as long as a server runs."""
    try:
        if number := await seal_plain(gateway):
            log.info("kept things: %d that lay in plain are encrypted", number)
    except WootzError as error:
        log.error("kept things: those of an older Wootz stay as they are: %s", error)
    while True:
        try:
            await sweep(gateway)
        except WootzError as error:
            log.warning("kept things: expired ones not deleted: %s", error)
        await asyncio.sleep(SWEEP_SECONDS)


async def sweep(gateway: Gateway) -> None:
    """Delete what has expired, and keys that nothing is sealed with any more."""
    await FileStore.of(gateway).sweep()
    await ResponseStore(gateway.database, gateway.kept).sweep()
    await gateway.kept.keys.sweep(datetime.now(UTC), *(table.c.sealed_with for table in TABLES))


async def seal_plain(gateway: Gateway) -> int:
    """Returns how many there were."""
    kept = gateway.kept

    def response(row: Any, key: DataKey) -> dict[str, Any]:
        thing = Thing("response", row.owner, row.id)
        return sealed_response(kept, key, thing, row.response.encode(), row.input.encode())

    def batch(row: Any, key: DataKey) -> dict[str, Any]:
        return {"batch": ""} | kept.seal(key, Thing("batch", row.owner, row.id), row.batch)

    def task(row: Any, key: DataKey) -> dict[str, Any]:
        thing, said = Thing("task", row.key_id or "", row.id), json.dumps([row.output, row.urls])
        return {"output": {}, "urls": []} | kept.seal(key, thing, said)

    number = await _seal_rows(gateway, responses, response)
    number += await _seal_rows(gateway, batches, batch, batches.c.status.not_in(OPEN))
    number += await _seal_rows(gateway, tasks, task)
    number += await _seal_files(gateway)
    if number:
        await gateway.database.vacuum()
    return number


async def give_up(database: Database, config: Config, wrapper: Callable[[], KeyWrapper]) -> dict[str, int]:
    """Delete what the present master key does not open; how many of each. Raises `ConfigError` where that key can't be
    asked, for then nothing is known of it."""
    keys, counts = keys_of_kept(database, wrapper), dict[str, int]()
    lost = await keys.lost()
    async with database.session() as session:
        for table in TABLES:
            gone = delete(table).where(table.c.sealed_with.in_(lost)).returning(table.c.id)
            ids = (await session.scalars(gone)).all()
            counts[table.name] = len(ids)
            await asyncio.to_thread(remove_files, config, table, ids)
        await session.execute(delete(kept_keys).where(kept_keys.c.id.in_(lost)))
    return counts


def remove_files(config: Config, table: Table, ids: Sequence[str]) -> None:
    """What lies on the disk of these rows of a table."""
    for id in ids:
        if table is files:
            (config.files_folder / "files" / id).unlink(missing_ok=True)
        elif table is batches:
            shutil.rmtree(config.files_folder / "batches" / id, ignore_errors=True)


async def _seal_rows(
    gateway: Gateway, table: Table, sealed: Callable[[Any, DataKey], dict[str, Any]], *only: ColumnElement[bool]
) -> int:
    c, number = table.c, 0
    page = select(table).where(c.sealed_with.is_(None), *only).limit(PAGE)
    while True:
        async with gateway.database.session() as session:
            rows = (await session.execute(page)).all()
        if not rows:
            return number
        key = await gateway.kept.key()
        async with gateway.database.session() as session:
            for row in rows:
                still = update(table).where(c.id == row.id, c.sealed_with.is_(None))
                await session.execute(still.values(sealed(row, key)))
        number += len(rows)


async def _seal_files(gateway: Gateway) -> int:
    store, c, number = FileStore.of(gateway), files.c, 0
    page = select(c.id).where(c.sealed.is_(None)).limit(PAGE)
    while True:
        async with gateway.database.session() as session:
            ids = (await session.scalars(page)).all()
        if not ids:
            return number
        for id in ids:
            key = await gateway.kept.key()
            async with gateway.database.session() as session:
                of_before = update(files).where(c.id == id, c.sealed_with.is_(None))
                await session.execute(of_before.values(sealed_with=key.id))
                row = (await session.execute(select(files).where(c.id == id))).one_or_none()
            if row is not None:
                await store.seal(await store.stored(row))
        number += len(ids)
