"""`PackedBatches`: endless rows of ``seq_len`` tokens out of token stores, in an order that any process can compute.

The documents of a source are one run of tokens, cut into rows of equal length without a token of padding; each epoch
begins the cutting elsewhere and shuffles the rows anew. The first token of the next row is the last label of this one.
Nothing is drawn while reading: a `Mixture` deals rows to sources, and row n of a source is row ``permuted(n)`` of its
file. So the batches depend on the seed and the step alone. A *global* batch is split between ranks, so that any number
of ranks reads the same batches, and a run stopped at step 700,000 goes on at once.

Documents in a row are isolated: `Batch.documents` tells the model where each begins (positions start again, nothing is
seen across), and the last token of a document is asked for nothing. Training across documents instead costs quality
(arXiv 2402.13991), and ``isolate=False`` is there to see that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from wootz.core.errors import ConfigError
from wootz.data.batch import IGNORED, Batch
from wootz.data.mixture import Mixture, Share
from wootz.data.permutation import key_of, permuted
from wootz.data.token_store import TokenStore


@dataclass(frozen=True)
class Row:
    """Row ``number`` of all that are read from a source; it is a slice of the source's tokens."""

    source: str
    number: int


@dataclass(frozen=True)
class Utilisation:
    """What the rows of a number of batches were used for, as shares of their tokens."""

    asked: float
    """Tokens with a label. The rest are the last ones of documents; nothing is padding."""
    documents_per_row: float
    cut: float
    """Of the documents' parts, those that the end of a row cut off."""


class PackedBatches:
    """A `Batches` over one store per source. ``batch_size`` is the global one, in rows; this rank gets its
    ``batch_size / world_size`` of them. Raises `ConfigError` if that is no whole number, for stores of different
    tokenizers, and for a source too small for one row."""

    def __init__(
        self,
        stores: Mapping[str, TokenStore],
        weights: Mapping[str, float] | None = None,
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        isolate: bool = True,
        max_epochs: float | None = None,
    ) -> None:
        _check(stores, seq_len, batch_size, world_size)
        self.stores, self.seq_len, self.batch_size, self.seed = dict(stores), seq_len, batch_size, seed
        self.isolate = isolate
        self._share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._rows_per_epoch = {name: store.num_tokens // seq_len for name, store in stores.items()}
        # Without weights every token of every source is as likely as any other.
        self.mixture = Mixture(weights or self._rows_per_epoch, self._rows_per_epoch, seed=seed, max_epochs=max_epochs)
        self.step = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        return self.batch_of(self.next_rows()[self._share])

    def next_rows(self) -> list[Row]:
        """The rows of the next global batch, which is thereby taken: calling this alone skips a batch unread."""
        self.step += 1
        return [Row(*self.mixture.draw()) for _ in range(self.batch_size)]

    def read(self, row: Row) -> tuple[NDArray[np.int64], list[int]]:
        """The tokens ``(seq_len + 1,)`` of a row, and where documents end in its first ``seq_len``."""
        store, num_rows = self.stores[row.source], self._rows_per_epoch[row.source]
        epoch, place = divmod(row.number, num_rows)
        key = key_of(self.seed, row.source, epoch)
        start = key % self.seq_len + self.seq_len * permuted(place, num_rows, key)
        return store.span(start, self.seq_len + 1), store.ends_within(start, self.seq_len)

    def batch_of(self, rows: Sequence[Row]) -> Batch:
        """These rows, whichever they are."""
        return packed([self.read(row) for row in rows], isolate=self.isolate)

    def utilisation(self, num_batches: int) -> Utilisation:
        """Of the next batches, which stay unread."""
        state, asked, documents, cut = self.state_dict(), 0, 0, 0
        for _ in range(num_batches):
            for row in self.next_rows():
                _, ends = self.read(row)
                asked += self.seq_len - (len(ends) if self.isolate else 0)
                whole = bool(ends) and ends[-1] == self.seq_len
                documents += len(ends) + (not whole)
                cut += not whole
        self.load_state_dict(state)
        num_rows = num_batches * self.batch_size
        return Utilisation(asked / (num_rows * self.seq_len), documents / num_rows, cut / documents)

    def shares(self) -> dict[str, Share]:
        """What was wanted and read of each source so far, over all ranks."""
        return self.mixture.report()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "order": self._order(), "mixture": self.mixture.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of any rank of any number of ranks. Raises `ConfigError` if the order was made of other data or settings."""
        check_order(state["order"], self._order())
        self.step = state["step"]
        self.mixture.load_state_dict(state["mixture"])

    def _order(self) -> dict[str, Any]:
        """All that the order of rows depends on, besides weights."""
        tokens = {name: store.num_tokens for name, store in self.stores.items()}
        return {"seed": self.seed, "seq_len": self.seq_len, "tokens": tokens}


def check_order(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if rows would not go on in the order in which a run was begun."""
    if changed := [name for name, value in now.items() if before.get(name) != value]:
        raise ConfigError(
            f"the run was begun with other data: {', '.join(changed)} changed since",
            hint="bring it back, or start a new run",
        )


def packed(rows: Sequence[tuple[NDArray[np.int64], list[int]]], *, isolate: bool) -> Batch:
    """Of rows of ``T + 1`` tokens each, and where documents end in the first T."""
    spans_BS, documents = np.stack([span for span, _ in rows]), []
    tokens_BT, labels_BT = spans_BS[:, :-1].copy(), spans_BS[:, 1:].copy()
    length = tokens_BT.shape[1]
    if isolate:
        for labels_T, (_, ends) in zip(labels_BT, rows, strict=True):
            labels_T[[end - 1 for end in ends]] = IGNORED
            borders = [0, *ends] if ends and ends[-1] == length else [0, *ends, length]
            documents.append(tuple(stop - start for start, stop in pairwise(borders)))
    return Batch(torch.from_numpy(tokens_BT), torch.from_numpy(labels_BT), tuple(documents) if isolate else None)


def _check(stores: Mapping[str, TokenStore], seq_len: int, batch_size: int, world_size: int) -> None:
    if not stores:
        raise ConfigError("there is no source to train on")
    if batch_size % world_size:
        raise ConfigError(
            f"a batch of {batch_size} rows can't be split between {world_size} ranks",
            hint=f"batch_size must be a multiple of {world_size}",
        )
    made_by = {_made_by(store): name for name, store in stores.items()}
    if len(made_by) > 1:
        raise ConfigError(f"the sources {', '.join(made_by.values())} were made with different tokenizers")
    for name, store in stores.items():
        if store.num_tokens <= seq_len:
            raise ConfigError(
                f'source "{name}" has {store.num_tokens} tokens, fewer than one row of {seq_len}',
                hint="add text to it, or make rows shorter",
            )


def _made_by(store: TokenStore) -> str:
    return repr((store.vocab_size, sorted(store.index.tokenizer.items())))
