"""`ParallelModel`: what the engine on the first rank takes for a model."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wootz.core import ConfigError, EngineConfig
from wootz.engine.attention import PagedCache, PagedContext
from wootz.engine.cache import BlockPool
from wootz.engine.parallel.lost import RankLostError
from wootz.engine.parallel.messages import ChunkPlace, Copy, Open, Pass, Report, Stop, Unembed, tell
from wootz.engine.parallel.ranks import Ranks
from wootz.engine.parallel.rows import micro_batches
from wootz.engine.parallel.share import Share, agree, load_share, place_of
from wootz.models.context import CacheSpec, Context, RecurrentState
from wootz.models.parallel import check_divides


def lead(path: Path, config: EngineConfig, dtype: torch.dtype, device: torch.device) -> ParallelModel:
    """Start the other ranks, load our share while they load theirs, and wait for them."""
    check_divides(path, place_of(0, config))
    ranks = Ranks(path, config)
    try:
        model = load_share(path, 0, config, dtype, device)
        if config.sequence_parallel > 1 and any(isinstance(spec, RecurrentState) for spec in model.cache_specs):
            raise ConfigError("sequence_parallel: a running state passes through a text in order")
        ranks.meet()
        return ParallelModel(Share(model, 0, config), ranks)
    except BaseException:
        ranks.end()
        raise


@dataclass(frozen=True)
class ParallelReport:
    """What the ranks have done so far."""

    passes: int
    micro_batches: int
    wall_seconds: float
    """Of all passes, on the first rank."""
    busy_seconds: list[float]
    """Of each rank, in its layers."""

    @property
    def bubble(self) -> float:
        """The share of the ranks' time in passes in which they did not compute: waiting for others, and talking."""
        return 1 - sum(self.busy_seconds) / (len(self.busy_seconds) * self.wall_seconds)


class ParallelModel:
    """Called like a model with a `PagedContext`, and called so on the first rank only: the others are told.

    Whatever goes wrong in a pass is a `RankLostError`: ranks that have stopped in the middle cannot be brought back
    into step.
    """

    def __init__(self, share: Share, ranks: Ranks) -> None:
        self.share, self.ranks, self.model = share, ranks, share.model
        self.copies: list[Copy] = []
        self.state_copies: list[Copy] = []
        self.num_passes = self.num_micro_batches = 0
        self.wall_seconds = 0.0

    # --- what the engine asks of a model ------------------------------------------------------------------------

    def __call__(self, token_ids_T: Tensor, positions_T: Tensor, context: Context) -> Tensor:
        assert isinstance(context, PagedContext), "only the engine's cache is on all ranks"
        begun = time.perf_counter()
        chunks = context.chunks
        ends = micro_batches(len(token_ids_T), self.share.place.pipeline)
        places = [
            ChunkPlace(chunk.start, chunk.num_tokens, chunk.sequence.table.blocks, chunk.sequence.table.state)
            for chunk in chunks
        ]
        copies, self.copies = self.copies, []
        state_copies, self.state_copies = self.state_copies, []
        with _in_step():
            tell(Pass(token_ids_T.tolist(), positions_T.tolist(), places, ends, copies, state_copies))
            hidden_TD = self.share.run(token_ids_T, positions_T, chunks, ends)
        assert hidden_TD is not None
        self.num_passes += 1
        self.num_micro_batches += len(ends)
        self.wall_seconds += time.perf_counter() - begun
        return hidden_TD

    def unembed(self, hidden_TD: Tensor) -> Tensor:
        if not self.share.helps_unembed:
            return self.model.unembed(hidden_TD)
        with _in_step():
            tell(Unembed(len(hidden_TD)))
            return self.share.unembed(hidden_TD.contiguous())

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return self.model.num_parameters

    @property
    def cache_specs(self) -> list[CacheSpec]:
        """Of the layers and heads that are here."""
        return self.model.cache_specs

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def modules(self) -> Iterator[nn.Module]:
        return self.model.modules()

    def prepare_for_inference(self) -> ParallelModel:
        """Each rank has done that for itself."""
        return self

    # --- what else it takes -------------------------------------------------------------------------------------

    def agree(self, num_blocks: int) -> int:
        """As many blocks as every rank has memory for."""
        return agree(num_blocks)

    def open(self, cache: PagedCache, pool: BlockPool, max_model_len: int) -> None:
        """Have all ranks make their cache, and do from now on what the pool has done to ours."""
        tell(Open(pool.num_blocks, pool.num_states or 0, max_model_len))
        self.share.open(cache, max_model_len)
        copy, copy_state = pool.copy, pool.copy_state

        def copy_everywhere(source: int, target: int) -> None:
            copy(source, target)
            self.copies.append((source, target))

        def copy_state_everywhere(source: int, target: int) -> None:
            copy_state(source, target)
            self.state_copies.append((source, target))

        pool.copy, pool.copy_state = copy_everywhere, copy_state_everywhere

    def report(self) -> ParallelReport:
        tell(Report())
        busy = [torch.zeros(1, dtype=torch.float64) for _ in range(self.ranks.num_ranks)]
        dist.all_gather(busy, torch.tensor([self.share.busy_seconds], dtype=torch.float64))
        return ParallelReport(self.num_passes, self.num_micro_batches, self.wall_seconds, [float(b) for b in busy])

    def close(self) -> None:
        """End the other ranks. The model is not used afterwards."""
        tell(Stop())
        dist.destroy_process_group()
        self.ranks.end()


@contextmanager
def _in_step() -> Generator[None, None, None]:
    """Whatever goes wrong inside, the ranks are out of step."""
    try:
        yield
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise RankLostError(f"the engine's ranks no longer work together ({reason}); try again") from error
