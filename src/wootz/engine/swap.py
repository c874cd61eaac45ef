"""Host memory for preempted sequences: their blocks are copied out, and back when there is room again.

The alternative is to compute them again. Swapping costs two copies, recomputing a prefill; which is cheaper depends
on model and machine, so with ``preemption = "auto"`` both are measured and the cheaper one is taken. A sequence that
comes back first looks for its prefix in the cache, as any other; only what is not found there is copied.

`SwapSpace` keeps the books, as `BlockPool` does for the device; ``save`` and ``load`` move the data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from wootz.engine.cache import BlockTable
from wootz.models.context import RecurrentState

if TYPE_CHECKING:
    from wootz.engine.attention import PagedCache

Preemption = Literal["auto", "recompute", "swap"]
Move = Callable[[list[int], list[int], int | None, int | None], None]
"""Copy blocks to blocks, and a state to a state where there is one."""

BYTES_PER_SECOND = 4e9
"""Of a copy, until one was measured."""


@dataclass(frozen=True)
class Saved:
    """What the first ``num_computed`` tokens of a sequence left in the cache, in host memory."""

    blocks: list[int]
    state: int | None
    num_computed: int


class SwapSpace:
    """``num_blocks`` blocks and ``num_states`` states of host memory. ``block_bytes`` is what one block takes."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        num_states: int = 0,
        block_bytes: int = 0,
        preemption: Preemption = "auto",
        save: Move = lambda sources, targets, source, target: None,
        load: Move = lambda sources, targets, source, target: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.num_blocks, self.block_size, self.num_states = num_blocks, block_size, num_states
        self.block_bytes, self.preemption = block_bytes, preemption
        self._save, self._load, self._clock = save, load, clock
        self.free = list(reversed(range(num_blocks)))
        self.free_states = list(reversed(range(num_states)))
        self.bytes_per_second = BYTES_PER_SECOND
        self.num_saved = self.num_loaded = 0

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self.free)

    def save(self, table: BlockTable, num_computed: int, seconds_per_token: float | None) -> Saved | None:
        """Copy a sequence out. None, and nothing done, where there is no room, or computing it again is cheaper.

        ``seconds_per_token`` is what computing it again would take, as far as that is known.
        """
        blocks = table.blocks[: -(-num_computed // self.block_size)]
        has_state = table.state is not None
        if (
            not num_computed
            or len(blocks) > len(self.free)
            or (has_state and not self.free_states)
            or not self._is_worth_it(num_computed, len(blocks), seconds_per_token)
        ):
            return None
        saved = Saved([self.free.pop() for _ in blocks], self.free_states.pop() if has_state else None, num_computed)
        start = self._clock()
        self._save(blocks, saved.blocks, table.state, saved.state)
        if (seconds := self._clock() - start) > 0 and blocks:
            self.bytes_per_second = (self.bytes_per_second + len(blocks) * self.block_bytes / seconds) / 2
        self.num_saved += 1
        return saved

    def load(self, saved: Saved, table: BlockTable, num_found: int) -> int:
        """Copy back what the table does not hold yet beyond ``num_found`` tokens; returns how many it holds then."""
        first = num_found // self.block_size
        if saved.num_computed > num_found:
            self._load(saved.blocks[first:], table.blocks[first : len(saved.blocks)], saved.state, table.state)
        self.num_loaded += 1
        self.drop(saved)
        return max(num_found, saved.num_computed)

    def drop(self, saved: Saved) -> None:
        """It is not needed any more."""
        self.free += saved.blocks
        if saved.state is not None:
            self.free_states.append(saved.state)

    def _is_worth_it(self, num_tokens: int, num_blocks: int, seconds_per_token: float | None) -> bool:
        if self.preemption != "auto" or seconds_per_token is None:
            return self.preemption != "recompute"
        return 2 * num_blocks * self.block_bytes / self.bytes_per_second < num_tokens * seconds_per_token

    def check_integrity(self, saved: Iterable[Saved]) -> None:
        """Raise AssertionError unless each block and state is free or of exactly one saved sequence."""
        saved = list(saved)
        held = sorted([*self.free, *(block for one in saved for block in one.blocks)])
        assert held == list(range(self.num_blocks)), "a host block is of nobody, or of two"
        states = sorted([*self.free_states, *(one.state for one in saved if one.state is not None)])
        assert states == list(range(self.num_states)), "a host state is of nobody, or of two"
        for one in saved:
            assert len(one.blocks) == -(-one.num_computed // self.block_size), "blocks and tokens disagree"


def mover(source: PagedCache, target: PagedCache) -> Move:
    """What copies from one cache's memory to the other's, layer by layer."""

    def move(sources: list[int], targets: list[int], state: int | None, target_state: int | None) -> None:
        for spec, layer, other in zip(source.specs, source.layers, target.layers, strict=True):
            if not isinstance(spec, RecurrentState):
                _copy(layer, other, sources, targets)
            elif state is not None and target_state is not None:
                _copy(layer, other, [state], [target_state])

    return move


def _copy(source: Any, target: Any, from_: list[int], to: list[int]) -> None:
    """Rows of a tensor, or of each of a tuple of them."""
    if isinstance(source, Tensor):
        source, target = (source,), (target,)
    for mine, theirs in zip(source, target, strict=True):
        rows = mine[torch.tensor(from_, device=mine.device)]
        theirs[torch.tensor(to, device=theirs.device)] = rows.to(theirs.device)
