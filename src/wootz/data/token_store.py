"""Tokenised documents on disk, memory-mapped: text is tokenised once, and training reads slices of files.

A store is a folder. Tokens lie in shards of plain little-endian integers (two bytes each where the vocabulary allows
it, else four), document after document; beside each shard lie the ends of its documents. ``index.json`` says what
there is:

    00000.tokens   uint16 or uint32, ``num_tokens`` of them
    00000.ends     uint64, one per document: where it ends, counted from the start of the shard
    index.json     sizes and sha256 of every shard, vocabulary size, fingerprint of the tokenizer, and whose text it is

A shard is written under a hidden name, brought to the disk and renamed, and only then named in the index: whatever
stops the writer, what the index names is whole, and the writer goes on after it. A file that is shorter than the index
says is found when the store is opened, one that was changed by `TokenStore.verify`.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wootz.core.atomic import atomic_file
from wootz.core.errors import ConfigError, ModelFileError, NotFoundError
from wootz.core.progress import SILENT, Progress

VERSION = 1
INDEX = "index.json"
TOKENS_PER_SHARD = 1 << 26


@dataclass(frozen=True)
class Shard:
    name: str
    num_tokens: int
    num_documents: int
    tokens_sha256: str
    ends_sha256: str


@dataclass(frozen=True, kw_only=True)
class Index:
    vocab_size: int
    tokenizer: Mapping[str, str]
    """`wootz.tokenization.fingerprint.fingerprint` of what made the ids; empty if nobody said."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Provenance, for people and reports: whose text, by which recipe, under which licence."""
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    version: int = VERSION

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    @staticmethod
    def read(folder: Path) -> Index:
        file = folder / INDEX
        if not file.is_file():
            raise NotFoundError(f"{folder}: is not a token store, it holds no {INDEX}")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["version"] != VERSION:
                raise ModelFileError(f"{file}: version {content['version']} is not known here, only {VERSION}")
            return Index(**content | {"shards": tuple(Shard(**shard) for shard in content["shards"])})
        except (ValueError, KeyError, TypeError) as error:
            raise ModelFileError(f"{file}: is damaged ({error})", hint="build the store again") from None

    def write(self, folder: Path) -> None:
        with atomic_file(folder / INDEX) as file:
            file.write(json.dumps(asdict(self), indent=1, ensure_ascii=False).encode())


class TokenStore:
    """All documents of a folder as one run of tokens. Cheap to open, and to send to another process by its path."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self.index = folder, index
        shards = index.shards
        self.vocab_size = index.vocab_size
        self._tokens = [_map(folder / f"{shard.name}.tokens", index.dtype, shard.num_tokens) for shard in shards]
        self._ends = [_map(folder / f"{shard.name}.ends", np.dtype("<u8"), shard.num_documents) for shard in shards]
        self._first_token = [0, *accumulate(shard.num_tokens for shard in shards)]
        self._first_document = [0, *accumulate(shard.num_documents for shard in shards)]

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = False) -> TokenStore:
        """Raises `NotFoundError` where there is no store, `ConfigError` for one whose writing was not finished, and
        `ModelFileError`, naming the file, for one that is damaged: sizes are always compared, and what the files hold
        with ``verify``."""
        folder = Path(folder)
        index = Index.read(folder)
        if not index.complete:
            raise ConfigError(f"{folder}: was not written to its end", hint="run what builds it again: it goes on")
        store = cls(folder, index)
        if verify:
            store.verify()
        return store

    @property
    def num_tokens(self) -> int:
        return self._first_token[-1]

    @property
    def num_documents(self) -> int:
        return self._first_document[-1]

    def document(self, number: int) -> NDArray[np.integer[Any]]:
        """The tokens ``(N,)`` of one document, a view of the file."""
        if not 0 <= number < self.num_documents:
            raise IndexError(f"{self.folder} has {self.num_documents} documents, none of number {number}")
        shard = bisect_right(self._first_document, number) - 1
        within, ends = number - self._first_document[shard], self._ends[shard]
        start = int(ends[within - 1]) if within else 0
        return self._tokens[shard][start : int(ends[within])]

    def span(self, start: int, length: int) -> NDArray[np.int64]:
        """``length`` tokens from ``start`` on, counted over all documents; the first comes after the last."""
        parts, place = [], start % self.num_tokens
        while length > 0:
            shard = bisect_right(self._first_token, place) - 1
            within = place - self._first_token[shard]
            part = self._tokens[shard][within : within + length]
            parts.append(part)
            length -= len(part)
            place = (place + len(part)) % self.num_tokens
        return np.concatenate(parts, dtype=np.int64)

    def ends_within(self, start: int, length: int) -> list[int]:
        """Where documents end in `span` of the same arguments: ascending, each in ``1 … length``."""
        found, done, place = [], 0, start % self.num_tokens
        while done < length:
            shard = bisect_right(self._first_token, place) - 1
            within = place - self._first_token[shard]
            size = min(length - done, self._first_token[shard + 1] - place)
            ends = self._ends[shard]
            first, last = np.searchsorted(ends, [within, within + size], side="right")
            found += [done + int(end) - within for end in ends[first:last]]
            done += size
            place = (place + size) % self.num_tokens
        return found

    def verify(self, progress: Progress = SILENT) -> None:
        """Read everything and compare checksums. Raises `ModelFileError`, naming the first file that was changed."""
        progress.set_total(len(self.index.shards))
        for shard in self.index.shards:
            for suffix, expected in (("tokens", shard.tokens_sha256), ("ends", shard.ends_sha256)):
                file = self.folder / f"{shard.name}.{suffix}"
                with file.open("rb") as content:
                    found = hashlib.file_digest(content, "sha256").hexdigest()
                if found != expected:
                    raise ModelFileError(
                        f"{file}: is damaged, its sha256 is {found[:12]}… and not {expected[:12]}…",
                        hint="copy this file again from where it came, or build the store again",
                    )
            progress.advance()

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore.open, (self.folder,)


class TokenStoreWriter:
    """Writes a store, or goes on with one: documents up to ``num_documents`` are already safe, and the caller begins
    after them.

        with TokenStoreWriter(folder, vocab_size=…) as writer:
            for tokens in documents_from(writer.num_documents):
                writer.add(tokens)

    Left by an error, the store stays unfinished and keeps its whole shards. Raises `ConfigError` when the folder holds
    a store of another tokenizer, and for a token outside of the vocabulary.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        vocab_size: int,
        tokenizer: Mapping[str, str] | None = None,
        about: Mapping[str, Any] | None = None,
        tokens_per_shard: int = TOKENS_PER_SHARD,
    ) -> None:
        self.folder = Path(folder)
        self.tokens_per_shard = tokens_per_shard
        self._index = Index(vocab_size=vocab_size, tokenizer=dict(tokenizer or {}), about=dict(about or {}))
        if (self.folder / INDEX).exists():
            there = Index.read(self.folder)
            if (there.vocab_size, there.tokenizer) != (vocab_size, self._index.tokenizer):
                raise ConfigError(f"{self.folder}: holds a store of another tokenizer", hint="choose another folder")
            self._index = there
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._index.write(self.folder)
        self._documents: list[NDArray[Any]] = []
        self._num_waiting = 0

    @property
    def num_documents(self) -> int:
        """How many documents are on the disk for good; more may be waiting for their shard to fill."""
        return sum(shard.num_documents for shard in self._index.shards)

    def add(self, tokens: Sequence[int] | NDArray[Any]) -> None:
        """One document, with whatever tokens open and close it. An empty one is a mistake of the caller's."""
        document = np.asarray(tokens, dtype=np.int64)
        if not len(document):
            raise ConfigError("a document without tokens can't be stored")
        if document.min() < 0 or document.max() >= self._index.vocab_size:
            raise ConfigError(
                f"token {document.max()} lies outside of the vocabulary of {self._index.vocab_size}",
                hint="the tokenizer is another one than the store was made for",
            )
        self._documents.append(document.astype(self._index.dtype))
        self._num_waiting += len(document)
        if self._num_waiting >= self.tokens_per_shard:
            self._write_shard()

    def close(self) -> None:
        """Write what waits, and call the store complete."""
        if self._documents:
            self._write_shard()
        self._set(complete=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()

    def _write_shard(self) -> None:
        name = f"{len(self._index.shards):05d}"
        tokens = np.concatenate(self._documents)
        ends = np.cumsum([len(document) for document in self._documents], dtype="<u8")
        shard = Shard(
            name,
            len(tokens),
            len(ends),
            _write(self.folder / f"{name}.tokens", tokens),
            _write(self.folder / f"{name}.ends", ends),
        )
        self._set(shards=(*self._index.shards, shard), complete=False)
        self._documents, self._num_waiting = [], 0

    def _set(self, **changes: Any) -> None:
        self._index = Index(**vars(self._index) | changes)
        self._index.write(self.folder)


def _write(path: Path, numbers: NDArray[Any]) -> str:
    data = numbers.tobytes()
    with atomic_file(path) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def _map(file: Path, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    try:
        size = os.stat(file).st_size
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be read ({error.strerror})") from None
    if size != length * dtype.itemsize:
        raise ModelFileError(
            f"{file}: is damaged, it has {size} bytes and not {length * dtype.itemsize}",
            hint="copy this file again from where it came, or build the store again",
        )
    return np.memmap(file, dtype, mode="r") if size else np.empty(0, dtype)
