"""A corpus between two steps: Parquet files of some thousand documents each, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wootz.core.atomic import atomic_file
from wootz.core.errors import MissingExtraError, ModelFileError
from wootz.data.documents import Document
from wootz.data.steps import Dropped

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    raise MissingExtraError("data", "train", "pyarrow") from None

CHARACTERS = 16_000_000
"""In one shard, about; what a process holds at a time."""

SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("text", pa.string()), ("about", pa.string())])


def to_table(documents: Sequence[Document]) -> pa.Table:
    return pa.table(
        {
            "id": [document.id for document in documents],
            "source": [document.source for document in documents],
            "text": [document.text.encode("utf-8", "replace").decode() for document in documents],
            "about": [json.dumps(dict(document.about), ensure_ascii=False) for document in documents],
        },
        SCHEMA,
    )


def from_table(table: pa.Table) -> list[Document]:
    columns = (table.column(name).to_pylist() for name in SCHEMA.names)
    return [Document(id, source, text, json.loads(about)) for id, source, text, about in zip(*columns, strict=True)]


def write_shard(file: Path, documents: Sequence[Document]) -> None:
    with atomic_file(file) as target:
        pq.write_table(to_table(documents), target, compression="zstd")


def read_shard(file: Path) -> list[Document]:
    """Raises `ModelFileError`, naming the file, for one that is damaged."""
    try:
        return from_table(pq.read_table(file, schema=SCHEMA))
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise ModelFileError(f"{file}: is damaged ({error})", hint="build the corpus again") from None


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def read_all(files: Iterable[Path]) -> Iterator[Document]:
    for file in files:
        yield from read_shard(file)


def batches_of(documents: Iterable[Document], characters: int = CHARACTERS) -> Iterator[list[Document]]:
    """Documents in order, as many at a time as have about ``characters``."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


DROPPED = pa.schema([("id", pa.string()), ("source", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def write_dropped(file: Path, gone: Sequence[Dropped]) -> None:
    """Which documents of a shard a step took out and why, without their text."""
    rows = [
        {"id": d.document.id, "source": d.document.source, "reason": d.reason, "detail": json.dumps(d.detail)}
        for d in gone
    ]
    with atomic_file(file) as target:
        pq.write_table(pa.Table.from_pylist(rows, DROPPED), target)


def read_dropped(folder: Path) -> Iterator[tuple[str, Any]]:
    """Reason and detail of every document that a step took out."""
    for file in shard_files(folder):
        table = pq.read_table(file, columns=["reason", "detail"])
        for reason, detail in zip(table["reason"].to_pylist(), table["detail"].to_pylist(), strict=True):
            yield reason, json.loads(detail)
