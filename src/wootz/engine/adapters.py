"""Adapters in the engine: which are known by name, which are loaded, and which rows of a step are whose.

Of all adapters that are known, at most ``max_adapters`` are loaded. One is loaded when the first request that names it
is about to run, in place of the one that was used longest ago; those that running requests use are never taken, and
when all are in use the request waits its turn. A LoRA's matrices join the model's projections, for its rows only. A
prefix is written into the cache in front of its prompt, where the block index shares it as it shares any prompt.

An adapter that is loaded anew under an old name gets a new salt, so what the old one left in the cache is never read.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from wootz.core import NotFoundError, UnsupportedError, WootzError
from wootz.models import Decoder
from wootz.models.adapters.attach import Adapters
from wootz.models.adapters.load import Lora, Prefix, load_adapter
from wootz.models.adapters.low_rank import Rows

if TYPE_CHECKING:
    from wootz.engine.attention import PagedCache
    from wootz.engine.runner import Model
    from wootz.engine.scheduler import Chunk
    from wootz.engine.sequence import Request


@dataclass(frozen=True)
class KnownAdapter:
    name: str
    path: Path
    salt: str
    """Under which the cache's index keeps what was computed with it."""
    num_virtual_tokens: int
    """Places that a prefix takes in front of the prompt."""


class AdapterCache:
    """``running`` gives the requests that have a place in the next step."""

    def __init__(self, model: Model, max_adapters: int, running: Callable[[], Iterable[Request]]) -> None:
        self.model, self.max_adapters, self.running = model, max_adapters, running
        self.known: dict[str, KnownAdapter] = {}
        self.loaded: OrderedDict[KnownAdapter, Lora | Prefix] = OrderedDict()
        """Least recently used first."""
        self.failed: list[tuple[Request, WootzError]] = []
        """Requests whose adapter was there once and can be loaded no more."""
        self._numbers = itertools.count(1)
        self._attached: Adapters | None = None

    def move_to(self, model: Model) -> None:
        """The weights were read anew, into another model: what is loaded was joined to the old one's projections."""
        self.model, self._attached = model, None
        self.loaded.clear()

    def read(self, path: Path | str) -> Lora | Prefix:
        """An adapter's tensors, laid out for this model. Changes nothing, so any thread may call it."""
        if not isinstance(self.model, Decoder):
            raise UnsupportedError("this model takes no adapters")
        return load_adapter(path, self.model)

    def register(self, name: str, path: Path | str, adapter: Lora | Prefix | None = None) -> None:
        """Let requests name it from now on. ``adapter`` is what `read` made of it, if it was read already."""
        adapter = adapter or self.read(path)
        self.forget(name)
        known = KnownAdapter(name, Path(path), f"adapter {next(self._numbers)}", adapter.num_virtual_tokens)
        self.known[name] = known
        if len(self.loaded) < self.max_adapters:
            self._put(known, adapter)

    def forget(self, name: str) -> None:
        """New requests cannot name it any more; those that have begun end with it."""
        self.known.pop(name, None)

    def find(self, name: str) -> KnownAdapter:
        if name not in self.known:
            raise NotFoundError(f'this model has no adapter "{name[:100]}"', param="model")
        return self.known[name]

    # --- loaded -----------------------------------------------------------------------------------------------

    def may_start(self, request: Request) -> bool:
        """Whether its adapter is loaded, now if need be."""
        known = request.adapter
        if known is None:
            return True
        if known not in self.loaded:
            if not self._make_room():
                return False
            try:
                self._put(known, self.read(known.path))
            except WootzError as error:
                self.failed.append((request, error))
                return False
        self.loaded.move_to_end(known)
        return True

    def _make_room(self) -> bool:
        in_use = {request.adapter for request in self.running()}
        while len(self.loaded) >= self.max_adapters:
            oldest = next((known for known in self.loaded if known not in in_use), None)
            if oldest is None:
                return False
            if isinstance(self.loaded.pop(oldest), Lora) and self._attached is not None:
                self._attached.remove(oldest.salt)
        return True

    def _put(self, known: KnownAdapter, adapter: Lora | Prefix) -> None:
        self.loaded[known] = adapter
        if isinstance(adapter, Lora):
            if self._attached is None:
                assert isinstance(self.model, Decoder)
                self._attached = Adapters(self.model)
            self._attached.add(known.salt, adapter)

    # --- one step ---------------------------------------------------------------------------------------------

    def passes(self, chunks: list[Chunk]) -> list[list[Chunk]]:
        """How to cut a step. Where a kernel runs all layers at once, which adds nothing, those without a LoRA go by
        themselves: with the same numbers, and at the same speed, as without such company."""
        if self._attached is None or self._attached.model.layer_loop is None:
            return [chunks]
        parts: tuple[list[Chunk], list[Chunk]] = [], []
        for chunk in chunks:
            known = chunk.sequence.request.adapter
            parts[known is not None and not known.num_virtual_tokens].append(chunk)
        return [part for part in parts if part]

    @contextmanager
    def rows(self, owners: list[KnownAdapter | None]) -> Iterator[None]:
        """In this block, the model is run over rows of these owners."""
        groups: dict[str, list[int]] = {}
        for row, known in enumerate(owners):
            if known is not None and not known.num_virtual_tokens:
                groups.setdefault(known.salt, []).append(row)
        if not groups or self._attached is None:
            yield
            return
        with self._attached.rows([(salt, self._rows(rows)) for salt, rows in groups.items()]):
            yield

    def _rows(self, rows: list[int]) -> Rows:
        if rows[-1] - rows[0] + 1 == len(rows):
            return slice(rows[0], rows[-1] + 1)
        return torch.tensor(rows, device=self.model.device)

    def seed(self, cache: PagedCache, chunks: list[Chunk]) -> None:
        """Write the prefixes of those that begin right behind one. Where it is shared this writes the same again."""
        for chunk in chunks:
            known = chunk.sequence.request.adapter
            if known is None or not known.num_virtual_tokens or chunk.start != known.num_virtual_tokens:
                continue
            prefix = self.loaded[known]
            assert isinstance(prefix, Prefix)
            size, blocks = cache.block_size, chunk.sequence.table.blocks
            places = [blocks[p // size] * size + p % size for p in range(known.num_virtual_tokens)]
            slots_P = torch.tensor(places, device=cache.device)
            for slot, kv_P2Kd in enumerate(prefix.kv_LP2Kd):
                cache.store(slot).write(slots_P, kv_P2Kd)
