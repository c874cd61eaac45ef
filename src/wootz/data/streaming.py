"""`StreamedBatches`: rows of text that is tokenised while it is read, for a corpus that is to be trained on once, or
that has no room beside it for its tokens. `PackedBatches` from a store costs less in every other case.

A store's rows are shuffled, for which all tokens must be counted first. Here documents are shuffled: in each epoch the
corpus' files in another order, and the documents of each file in another order. Their tokens are one run, cut into rows
that follow each other; each document's are those that a store would hold. So the order depends on the seed alone, and
a place in it is a document and a token of it: a run goes on from there by reading one file and encoding one document.

Where a row begins follows from the lengths of all before it, so every rank encodes what all ranks read, and takes its
rows: any number of ranks reads the same global batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wootz.core.errors import ConfigError, NotFoundError
from wootz.data.batch import Batch
from wootz.data.mixture import Mixture
from wootz.data.packing import check_order, packed
from wootz.data.permutation import key_of, permuted
from wootz.data.shards import read_shard, shard_files
from wootz.data.tokens import encode, vocabulary
from wootz.tokenization import ByteTokenizer, Tokenizer

DOCUMENTS_AT_ONCE = 64
"""Encoded together: many are faster than one by one, and all wait in memory."""


class TextDocuments:
    """The documents of one source in a corpus' Parquet files, in an endless order: ``number(place)`` is which of its
    documents (in the order of the files) comes at a place, ``encoded`` are the tokens of some from a place on."""

    def __init__(self, files: Mapping[Path, int], source: str, tokenizer: Tokenizer | ByteTokenizer, seed: int) -> None:
        """``files`` with how many documents of this source each holds."""
        self.source, self.tokenizer, self.seed = source, tokenizer, seed
        self._files = [file for file, count in files.items() if count]
        self._counts = [count for count in files.values() if count]
        self._first = [0, *accumulate(self._counts)]
        self.num_documents = self._first[-1]
        self._open: tuple[int, list[str]] | None = None

    def number(self, place: int) -> int:
        file, within = self._at(place)
        return self._first[file] + within

    def encoded(self, place: int, most: int) -> list[NDArray[np.int64]]:
        """One at least; no more than the file holds that the first one lies in."""
        file, within = self._at(place)
        texts = self._texts(file)
        wanted = [within]
        while len(wanted) < most and (after := self._at(place + len(wanted)))[0] == file:
            wanted.append(after[1])
        return [np.asarray(ids, np.int64) for ids in encode(self.tokenizer, [texts[n] for n in wanted])]

    def _at(self, place: int) -> tuple[int, int]:
        """The file, and the document in it."""
        epoch, left = divmod(place, self.num_documents)
        key = key_of(self.seed, self.source, epoch)
        file = permuted(turn := 0, len(self._files), key)
        while left >= self._counts[file]:
            left -= self._counts[file]
            file = permuted(turn := turn + 1, len(self._files), key)
        return file, permuted(left, self._counts[file], key_of(key, file))

    def _texts(self, file: int) -> list[str]:
        if self._open is None or self._open[0] != file:
            texts = [document.text for document in read_shard(self._files[file]) if document.source == self.source]
            self._open = file, texts
        return self._open[1]


def open_texts(folder: Path, tokenizer: Tokenizer | ByteTokenizer, seed: int) -> dict[str, TextDocuments]:
    """The sources of a folder such as ``OUT/documents``. Raises `NotFoundError` where there are none."""
    counts: dict[str, dict[Path, int]] = {}
    for file in shard_files(folder):
        for source in pq.read_table(file, columns=["source"])["source"].to_pylist():
            of_source = counts.setdefault(source, {})
            of_source[file] = of_source.get(file, 0) + 1
    if not counts:
        raise NotFoundError(f"{folder}: holds no documents", hint="run `wootz data build` to its end first")
    return {source: TextDocuments(files, source, tokenizer, seed) for source, files in sorted(counts.items())}


class TokenStream:
    """Documents' tokens, one after another, taken by rows."""

    def __init__(self, documents: TextDocuments) -> None:
        self.documents = documents
        self.place, self.offset = 0, 0
        """The document that the next row begins in, and at which of its tokens."""
        self._waiting: deque[NDArray[np.int64]] = deque()
        """Encoded, from ``place`` on."""

    def take(self, length: int) -> tuple[NDArray[np.int64], list[int]]:
        """The next ``length`` tokens and, still to come, the one behind them; and where documents end in them."""
        parts, ends, have = list[NDArray[np.int64]](), list[int](), 0
        number, start = 0, self.offset
        while have < length + 1:
            if number == len(self._waiting):
                self._waiting += self.documents.encoded(self.place + number, DOCUMENTS_AT_ONCE)
            parts.append(self._waiting[number][start:])
            have += len(parts[-1])
            if have <= length:
                ends.append(have)
            number, start = number + 1, 0
        self.offset += length
        while self.offset >= len(self._waiting[0]):
            self.offset -= len(self._waiting.popleft())
            self.place += 1
        return np.concatenate(parts)[: length + 1], ends

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place, "offset": self.offset}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.place, self.offset = state["place"], state["offset"]
        self._waiting.clear()


class StreamedBatches:
    """A `Batches` over texts by source, with the arguments of `PackedBatches`."""

    def __init__(
        self,
        texts: Mapping[str, TextDocuments],
        weights: Mapping[str, float],
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        isolate: bool = True,
    ) -> None:
        if batch_size % world_size:
            raise ConfigError(f"a batch of {batch_size} rows can't be split between {world_size} ranks")
        self.streams = {name: TokenStream(documents) for name, documents in texts.items()}
        self.seq_len, self.batch_size, self.seed, self.isolate = seq_len, batch_size, seed, isolate
        self._share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        # No source is warned of as read too often: how many rows it has is not known before they are read.
        self.mixture = Mixture(weights, dict.fromkeys(texts, 2**62), seed=seed)

    def __next__(self) -> Batch:
        rows = [self.streams[self.mixture.draw()[0]].take(self.seq_len) for _ in range(self.batch_size)]
        return packed(rows[self._share], isolate=self.isolate)

    def state_dict(self) -> dict[str, Any]:
        streams = {name: stream.state_dict() for name, stream in self.streams.items()}
        return {"order": self._order(), "streams": streams, "mixture": self.mixture.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of any rank of any number of ranks. Raises `ConfigError` if the order was made of other data or settings."""
        check_order(state["order"], self._order())
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"][name])
        self.mixture.load_state_dict(state["mixture"])

    def _order(self) -> dict[str, Any]:
        documents = {name: stream.documents.num_documents for name, stream in self.streams.items()}
        made_by = next(vocabulary(stream.documents.tokenizer) for stream in self.streams.values())
        return {"seed": self.seed, "seq_len": self.seq_len, "documents": documents, "tokenizer": made_by}
