"""Files that users upload and batches write: a row in the database, and the bytes in ``WOOTZ_HOME/files``.

A file lies under its id, encrypted (`wootz.store.sealed_file`) with the key that its row names. The name that came with
it is a label, which no path is made of. A key sees its own files and no other's.
"""

from __future__ import annotations

import asyncio
import io
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    String,
    Table,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from wootz.core import BadRequestError, NotFoundError, PermissionError_
from wootz.gateway.kept import Kept, Thing, sealed_columns, telling
from wootz.store import Base, Database
from wootz.store.sealed_file import PIECE, DamagedFile, SealedFile, is_sealed, write_sealed
from wootz.store.secrets.data_keys import DataKey

if TYPE_CHECKING:
    from wootz.gateway.gateway import Gateway

files = Table(
    "files",
    Base.metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    # In plain, of before it was encrypted.
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    # Without `sealed`, the file may have been sealed already, and then with this key.
    *sealed_columns(),
    Index(None, "owner", "created_at"),
)

MAX_NAME_CHARS = 255


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    id: str
    owner: str
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    bytes: int
    sealed_with: str | None
    """A key's id; None for one of before files were encrypted."""
    is_sealed: bool
    """Nothing else is taken for it."""

    @property
    def thing(self) -> Thing:
        return Thing("file", self.owner, self.id)

    def to_openai(self) -> dict[str, Any]:
        shown = {"id": self.id, "object": "file", "bytes": self.bytes, "created_at": self.created_at}
        shown |= {"filename": self.filename, "purpose": self.purpose, "status": "processed"}
        return shown if self.expires_at is None else shown | {"expires_at": self.expires_at}


class FileStore:
    def __init__(self, database: Database, kept: Kept, folder: Path, max_stored_bytes: int) -> None:
        self.database, self.kept = database, kept
        self.folder = folder
        self.max_stored_bytes = max_stored_bytes

    @classmethod
    def of(cls, gateway: Gateway) -> FileStore:
        folder, most = gateway.config.files_folder / "files", gateway.config.batches.max_stored_bytes
        return cls(gateway.database, gateway.kept, folder, most)

    def path(self, id: str) -> Path:
        return self.folder / id

    async def add(
        self,
        owner: str,
        source: BinaryIO,
        *,
        filename: str,
        purpose: str,
        check: Callable[[BinaryIO], None],
        expires_after: int | None = None,
    ) -> StoredFile:
        """Let ``check`` (in a thread) raise what is wrong with what ``source`` has, and keep it."""
        check_name(filename)
        num_bytes = source.seek(0, io.SEEK_END)
        if await self._stored_bytes(owner) + num_bytes > self.max_stored_bytes:
            message = f"this key's files may take {self.max_stored_bytes} bytes, all together"
            raise PermissionError_(message, code="storage_full", hint="delete some")
        source.seek(0)
        await asyncio.to_thread(check, source)
        thing, key = Thing("file", owner, f"file-{uuid.uuid4().hex}"), await self.kept.key()
        return await self.write(
            thing, key, _parts(source), filename=filename, purpose=purpose, expires_after=expires_after
        )

    async def write(
        self,
        thing: Thing,
        key: DataKey,
        content: Iterable[bytes],
        *,
        filename: str,
        purpose: str,
        expires_after: int | None = None,
    ) -> StoredFile:
        """A new file. Whoever was killed half way may do it again, with the same id and key."""
        num_bytes = await asyncio.to_thread(self._put, thing, key, content)
        now = int(time.time())
        plain = {
            "id": thing.id,
            "owner": thing.owner,
            "created_at": now,
            "expires_at": now + expires_after if expires_after else None,
            "purpose": purpose,
            "bytes": num_bytes,
        }
        row = plain | {"filename": ""} | self.kept.seal(key, thing, filename)
        async with self.database.session() as session:
            if (await session.execute(select(files.c.id).where(files.c.id == thing.id))).one_or_none() is None:
                await session.execute(insert(files), [row])
        return StoredFile(**plain, filename=filename, sealed_with=key.id, is_sealed=True)

    async def open(self, file: StoredFile) -> BinaryIO:
        """Its content, to be read from any place. Raises `NotFoundError` where it is gone, `ConfigError` for one that
        is not what was kept; what is wrong in the middle of it is raised when that is read."""
        with telling(file.thing):
            key = None if file.sealed_with is None else await self.kept.keys.find(file.sealed_with)
            try:
                return await asyncio.to_thread(self._open, file, key)
            except FileNotFoundError:
                message = f'the content of file "{file.id}" is gone'
                raise NotFoundError(message, code="file_not_found", param="file_id") from None

    async def get(self, owner: str, id: str) -> StoredFile:
        """Raises `NotFoundError`, in the same words for another's file."""
        async with self.database.session() as session:
            row = (await session.execute(select(files).where(*_own(owner, id), _lives()))).one_or_none()
        if row is None:
            raise _not_there(id)
        return await self.stored(row)

    async def list(
        self, owner: str, *, limit: int, after: str | None = None, purpose: str | None = None, newest_first: bool = True
    ) -> list[StoredFile]:
        c = files.c
        order = (c.created_at.desc(), c.id.desc()) if newest_first else (c.created_at, c.id)
        query = select(files).where(c.owner == owner, _lives()).order_by(*order).limit(limit)
        if purpose is not None:
            query = query.where(c.purpose == printable(purpose))
        if after is not None:
            last = await self.get(owner, after)
            earlier = c.created_at < last.created_at if newest_first else c.created_at > last.created_at
            before = c.id < last.id if newest_first else c.id > last.id
            query = query.where(or_(earlier, and_(c.created_at == last.created_at, before)))
        async with self.database.session() as session:
            rows = (await session.execute(query)).all()
        return [await self.stored(row) for row in rows]

    async def stored(self, row: Any) -> StoredFile:
        fields = {name: value for name, value in row._mapping.items() if name != "sealed"}
        name = await self.kept.open(Thing("file", row.owner, row.id), row)
        fields["filename"] = row.filename if name is None else name
        return StoredFile(**fields, is_sealed=row.sealed is not None)

    async def delete(self, owner: str, id: str) -> None:
        """Also where it can't be opened."""
        async with self.database.session() as session:
            gone = await session.execute(delete(files).where(*_own(owner, id), _lives()).returning(files.c.id))
            if gone.one_or_none() is None:
                raise _not_there(id)
        self.path(id).unlink(missing_ok=True)

    async def seal(self, file: StoredFile) -> None:
        """One of before files were encrypted, whose row has its key. It does no harm when done twice at a time."""
        assert file.sealed_with is not None
        key = await self.kept.keys.find(file.sealed_with)
        with suppress(FileNotFoundError):
            await asyncio.to_thread(self._seal, file, key)
        values = {"filename": ""} | self.kept.seal(key, file.thing, file.filename)
        async with self.database.session() as session:
            sealed = update(files).where(files.c.id == file.id).values(values).returning(files.c.id)
            is_there = (await session.execute(sealed)).one_or_none()
        if is_there is None:  # Its user has deleted it meanwhile.
            self.path(file.id).unlink(missing_ok=True)

    async def sweep(self) -> None:
        """Delete what has expired."""
        expired = files.c.expires_at <= int(time.time())
        async with self.database.session() as session:
            ids = list(await session.scalars(select(files.c.id).where(expired)))
            await session.execute(delete(files).where(files.c.id.in_(ids)))
        for id in ids:
            self.path(id).unlink(missing_ok=True)

    async def _stored_bytes(self, owner: str) -> int:
        async with self.database.session() as session:
            return int(await session.scalar(select(func.sum(files.c.bytes)).where(files.c.owner == owner)) or 0)

    # --- on the disk, in a thread ---------------------------------------------------------------------------------

    def _put(self, thing: Thing, key: DataKey, content: Iterable[bytes]) -> int:
        """There as a whole or not at all. Returns the content's bytes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"{thing.id}.{uuid.uuid4().hex}.part"
        try:
            num_bytes = write_sealed(part, key.key, thing.context, content)
            os.replace(part, self.path(thing.id))
            return num_bytes
        finally:
            part.unlink(missing_ok=True)

    def _seal(self, file: StoredFile, key: DataKey) -> None:
        with open(self.path(file.id), "rb") as plain:
            if not is_sealed(plain):
                self._put(file.thing, key, _parts(plain))

    def _open(self, file: StoredFile, key: DataKey | None) -> BinaryIO:
        raw = open(self.path(file.id), "rb")  # noqa: SIM115 (its reader closes it)
        if key is not None and is_sealed(raw):
            return cast(BinaryIO, io.BufferedReader(SealedFile(raw, key.key, file.thing.context), PIECE))
        if not file.is_sealed:
            return raw
        raw.close()
        raise DamagedFile("it is not encrypted, and was", hint="another was put in its place")


def check_name(filename: str) -> None:
    """Raises `BadRequestError` for a name that is none, or means more than one."""
    bad = not filename or len(filename) > MAX_NAME_CHARS or not filename.isprintable()
    if bad or set(filename) & set("/\\:") or filename in (".", ".."):
        message = f"a file's name has 1 to {MAX_NAME_CHARS} printable characters and no / \\ or :"
        raise BadRequestError(message, code="invalid_filename", param="file")


def printable(text: str) -> str:
    """PostgreSQL has no text with a zero character, not even to compare."""
    return text if text.isprintable() else ""


def _own(owner: str, id: str) -> tuple[Any, ...]:
    return files.c.id == printable(id), files.c.owner == owner


def _lives() -> ColumnElement[bool]:
    return or_(files.c.expires_at.is_(None), files.c.expires_at > int(time.time()))


def _not_there(id: str) -> NotFoundError:
    return NotFoundError(f'there is no file "{id[:100]}"', code="file_not_found", param="file_id")


def _parts(source: BinaryIO) -> Iterator[bytes]:
    source.seek(0)
    while part := source.read(2**20):
        yield part
