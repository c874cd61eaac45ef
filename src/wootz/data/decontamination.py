"""What a model is examined with must not be in what it learns from: documents that share an n-gram with an eval set.

Thirteen words in a row are taken for a leak (GPT-3, arXiv 2005.14165, appendix C), after the normalisation of
`shingles`, so that neither case nor punctuation nor line breaks hide one. An item's fields (question, answer, each
choice) are looked for one by one, since a leak may quote them in any order. A field of fewer words is looked for as a
whole, down to eight; a shorter one ("yes", a number) is in half of all text and isn't: the report says of how many
items nothing could be searched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wootz.core.errors import ConfigError
from wootz.data.documents import Source, read_rows
from wootz.data.shingles import num_words, shingles

NGRAM = 13
SHORTEST = 8

Item = Sequence[str]
"""One question of an eval set: its fields."""


@dataclass(frozen=True)
class Leak:
    """An item of a benchmark that a document quotes."""

    benchmark: str
    item: int


@dataclass(frozen=True)
class Found:
    """Of one benchmark, over a whole corpus."""

    items: int
    searchable: int
    leaked: int
    documents: int


class Decontaminator:
    """``benchmarks`` are their items by name. Cheap to keep: 16 bytes per n-gram of the eval sets."""

    def __init__(self, benchmarks: Mapping[str, Sequence[Item]], ngram: int = NGRAM) -> None:
        if ngram < 1:
            raise ConfigError("an n-gram has at least one word")
        self.ngram = ngram
        self._owners: list[Leak] = []
        self.num_items = {name: len(items) for name, items in benchmarks.items()}
        fields, owner_of_field = [], []
        for name, items in benchmarks.items():
            for number, item in enumerate(items):
                fields += item
                owner_of_field += [len(self._owners)] * len(item)
                self._owners.append(Leak(name, number))
        lengths, owners = num_words(fields), np.array(owner_of_field, np.int64)
        self._tables: dict[int, _Table] = {}
        for length in range(min(SHORTEST, ngram), ngram + 1):
            chosen = np.flatnonzero(lengths >= length if length == ngram else lengths == length)
            if chosen.size:
                found = shingles([fields[place] for place in chosen], length)
                self._tables[length] = _Table.of(found.hashes, np.repeat(owners[chosen], np.diff(found.offsets)))
        searched = {int(owner) for table in self._tables.values() for owner in np.unique(table.owners)}
        self.num_searchable = dict.fromkeys(benchmarks, 0)
        for owner in searched:
            self.num_searchable[self._owners[owner].benchmark] += 1

    @staticmethod
    def against(paths: Sequence[str | Path], ngram: int = NGRAM) -> Decontaminator:
        """Eval sets from files and folders of them; each file is one, by its name. Raises `NotFoundError` for a path
        that leads nowhere."""
        return Decontaminator({name: [*items] for path in paths for name, items in _benchmarks(Path(path))}, ngram)

    def leaks(self, texts: Sequence[str]) -> list[list[Leak]]:
        """Of each text the items that it quotes, in order."""
        found: list[set[int]] = [set() for _ in texts]
        for length, table in self._tables.items():
            runs = shingles(texts, length, short=False)
            for place, owners in table.look_up(runs.hashes):
                found[int(np.searchsorted(runs.offsets, place, side="right")) - 1].update(owners)
        return [[self._owners[owner] for owner in sorted(owners)] for owners in found]

    def report(self, leaks: Iterator[Sequence[Leak]]) -> dict[str, Found]:
        """Of the `leaks` of all documents."""
        items: dict[str, set[int]] = defaultdict(set)
        documents: dict[str, int] = defaultdict(int)
        for of_document in leaks:
            for leak in of_document:
                items[leak.benchmark].add(leak.item)
            for name in {leak.benchmark for leak in of_document}:
                documents[name] += 1
        return {
            name: Found(number, self.num_searchable[name], len(items[name]), documents[name])
            for name, number in self.num_items.items()
        }


@dataclass(frozen=True)
class _Table:
    """Hashes in order, and whose they are."""

    hashes: NDArray[np.uint64]
    owners: NDArray[np.int64]

    @staticmethod
    def of(hashes: NDArray[np.uint64], owners: NDArray[np.int64]) -> _Table:
        order = np.argsort(hashes, kind="stable")
        return _Table(hashes[order], owners[order])

    def look_up(self, hashes: NDArray[np.uint64]) -> Iterator[tuple[int, list[int]]]:
        """Places of hashes that are in the table, and their owners."""
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        for place in np.flatnonzero(self.hashes[places] == hashes):
            first = int(places[place])
            last = int(np.searchsorted(self.hashes, hashes[place], side="right"))
            yield int(place), self.owners[first:last].tolist()


def _benchmarks(path: Path) -> Iterator[tuple[str, Iterator[Item]]]:
    files = Source(name=path.stem, path=str(path)).files()
    for file in files:
        name = file.relative_to(path).with_suffix("").as_posix() if path.is_dir() else file.stem
        yield name, (_strings(row) for row in read_rows(file))


def _strings(row: Any) -> list[str]:
    """Every text in a row, however deep."""
    if isinstance(row, str):
        return [part for part in row.split("\n\n") if part.strip()]
    if isinstance(row, Mapping):
        row = list(row.values())
    return [text for value in row for text in _strings(value)] if isinstance(row, list | tuple) else []
