"""Files that users upload and batches write: a row in the database, and the bytes in ``WOOTZ_HOME/files``.

A file lies under its id. The name that came with it is a label, which no path is made of. A key sees its own files and
no other's.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import BigInteger, Column, Index, String, Table, and_, delete, func, insert, or_, select

from wootz.core import BadRequestError, NotFoundError, PermissionError_
from wootz.store import Base, Database

files = Table(
    "files",
    Base.metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
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

    def to_openai(self) -> dict[str, Any]:
        shown = {"id": self.id, "object": "file", "bytes": self.bytes, "created_at": self.created_at}
        shown |= {"filename": self.filename, "purpose": self.purpose, "status": "processed"}
        return shown if self.expires_at is None else shown | {"expires_at": self.expires_at}


class FileStore:
    def __init__(self, database: Database, folder: Path, max_stored_bytes: int) -> None:
        self.database = database
        self.folder = folder
        self.max_stored_bytes = max_stored_bytes

    def path(self, file: StoredFile) -> Path:
        return self.folder / file.id

    async def add(
        self,
        owner: str,
        source: BinaryIO,
        *,
        filename: str,
        purpose: str,
        check: Callable[[Path], None],
        expires_after: int | None = None,
    ) -> StoredFile:
        """Copy what ``source`` has and let ``check`` (in a thread) raise what is wrong with it; then it is there."""
        check_name(filename)
        id = f"file-{uuid.uuid4().hex}"
        path = self.folder / f"{id}.part"
        try:
            num_bytes = await asyncio.to_thread(_copy, source, path)
            if await self._stored_bytes(owner) + num_bytes > self.max_stored_bytes:
                message = f"this key's files may take {self.max_stored_bytes} bytes, all together"
                raise PermissionError_(message, code="storage_full", hint="delete some")
            await asyncio.to_thread(check, path)
            return await self.adopt(path, id, owner, filename=filename, purpose=purpose, expires_after=expires_after)
        finally:
            path.unlink(missing_ok=True)

    async def adopt(
        self, path: Path, id: str, owner: str, *, filename: str, purpose: str, expires_after: int | None = None
    ) -> StoredFile:
        """Move a finished file in. Whoever was killed half way may do it again, with the same id."""
        now, num_bytes = int(time.time()), await asyncio.to_thread(_move, path, self.folder / id)
        row = {
            "id": id,
            "owner": owner,
            "created_at": now,
            "expires_at": now + expires_after if expires_after else None,
            "filename": filename,
            "purpose": purpose,
            "bytes": num_bytes,
        }
        async with self.database.session() as session:
            if (await session.execute(select(files.c.id).where(files.c.id == id))).one_or_none() is None:
                await session.execute(insert(files), [row])
        return StoredFile(**row)

    async def get(self, owner: str, id: str) -> StoredFile:
        """Raises `NotFoundError`, in the same words for another's file."""
        async with self.database.session() as session:
            row = (await session.execute(select(files).where(*_own(owner, id)))).one_or_none()
        if row is None or (row.expires_at is not None and row.expires_at <= time.time()):
            raise NotFoundError(f'there is no file "{id[:100]}"', code="file_not_found", param="file_id")
        return StoredFile(**row._mapping)

    async def list(
        self, owner: str, *, limit: int, after: str | None = None, purpose: str | None = None, newest_first: bool = True
    ) -> list[StoredFile]:
        c = files.c
        order = (c.created_at.desc(), c.id.desc()) if newest_first else (c.created_at, c.id)
        query = select(files).where(c.owner == owner).order_by(*order).limit(limit)
        query = query.where(or_(c.expires_at.is_(None), c.expires_at > int(time.time())))
        if purpose is not None:
            query = query.where(c.purpose == printable(purpose))
        if after is not None:
            last = await self.get(owner, after)
            earlier = c.created_at < last.created_at if newest_first else c.created_at > last.created_at
            before = c.id < last.id if newest_first else c.id > last.id
            query = query.where(or_(earlier, and_(c.created_at == last.created_at, before)))
        async with self.database.session() as session:
            return [StoredFile(**row._mapping) for row in await session.execute(query)]

    async def delete(self, owner: str, id: str) -> None:
        file = await self.get(owner, id)
        async with self.database.session() as session:
            await session.execute(delete(files).where(*_own(owner, id)))
        self.path(file).unlink(missing_ok=True)

    async def sweep(self) -> None:
        """Delete what has expired."""
        expired = files.c.expires_at <= int(time.time())
        async with self.database.session() as session:
            ids = list(await session.scalars(select(files.c.id).where(expired)))
            await session.execute(delete(files).where(files.c.id.in_(ids)))
        for id in ids:
            (self.folder / id).unlink(missing_ok=True)

    async def _stored_bytes(self, owner: str) -> int:
        async with self.database.session() as session:
            return int(await session.scalar(select(func.sum(files.c.bytes)).where(files.c.owner == owner)) or 0)


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


def _move(path: Path, target: Path) -> int:
    """If it was not moved already. Returns its size."""
    if path.exists():
        os.replace(path, target)
    return target.stat().st_size


def _copy(source: BinaryIO, path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    source.seek(0)
    with open(path, "xb") as target:
        while piece := source.read(2**20):
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())
        return target.tell()
