"""One rank's part of a pass: its layers, its heads or its tokens, over its own paged cache.

Every rank's cache has the same blocks under the same numbers, so one block table is right on all of them; what lies in
a block differs: the keys and values of this rank's heads and layers.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from wootz.core import EngineConfig
from wootz.engine.attention import PagedCache, PagedContext
from wootz.engine.parallel.messages import Copy
from wootz.engine.parallel.rows import cut_chunks, own_rows
from wootz.engine.parallel.sequence import SequenceContext
from wootz.engine.scheduler import Chunk
from wootz.models import Decoder
from wootz.models.parallel import Place, TensorGroup, connect, load_shard, run_stage
from wootz.models.positions.rotary import fix_length


def place_of(rank: int, config: EngineConfig) -> Place:
    return Place(rank, config.tensor_parallel, config.pipeline_parallel, split_experts=config.expert_parallel)


def load_share(path: Path, rank: int, config: EngineConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The weights that this rank holds. With ``sequence_parallel`` that is all of them."""
    if config.threads is None and device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // config.num_ranks))
    place = Place() if config.sequence_parallel > 1 else place_of(rank, config)
    return load_shard(path, place, dtype=dtype, device=device)


class Share:
    """Made on all ranks at once, when their process group stands."""

    def __init__(self, model: Decoder, rank: int, config: EngineConfig) -> None:
        self.model, self.rank, self.config = model, rank, config
        self.place = place_of(rank, config)
        self.busy_seconds = 0.0
        self.cache: PagedCache | None = None
        self.tensor_group: TensorGroup | None = None
        tensor, stages = self.place.tensor, self.place.pipeline
        if tensor > 1:
            groups = [dist.new_group(list(range(s * tensor, (s + 1) * tensor))) for s in range(stages)]
            self.tensor_group = TensorGroup(cast(dist.ProcessGroup, groups[self.place.stage]))
            connect(model, self.tensor_group)
        # A group for each hop, so that what goes around a ring of two never waits for what comes back.
        self.hops = {
            (source, target): cast(dist.ProcessGroup, dist.new_group([source, target]))
            for source in range(tensor * stages)
            if (target := (source + tensor) % (tensor * stages)) != source
        }
        self.before = (rank - tensor) % (tensor * stages)
        self.after = (rank + tensor) % (tensor * stages)
        model.prepare_for_inference()

    def open(self, cache: PagedCache, max_model_len: int) -> None:
        self.cache = cache
        fix_length(self.model.modules(), max_model_len)

    def copy(self, copies: list[Copy], state_copies: list[Copy]) -> None:
        """What the pool did to the first rank's cache, done to this one's."""
        assert self.cache is not None
        for source, target in copies:
            self.cache.copy(source, target)
        for source, target in state_copies:
            self.cache.copy_state(source, target)

    def run(
        self, token_ids_T: Tensor, positions_T: Tensor, chunks: list[Chunk], micro_batches: list[int]
    ) -> Tensor | None:
        """This rank's part of a pass; the final hidden states ``(T, D)`` on the first stage, None on the others."""
        assert self.cache is not None
        if self.config.sequence_parallel > 1:
            own = own_rows(len(token_ids_T), self.rank, self.config.sequence_parallel)
            context = SequenceContext(self.cache, chunks, own)
            return context.gather(self.model(token_ids_T[own], positions_T[own], context))
        ranges = [slice(start, end) for start, end in zip([0, *micro_batches], micro_batches, strict=False)]
        contexts = [PagedContext(self.cache, cut_chunks(chunks, rows)) for rows in ranges]
        sending: list[tuple[dist.Work | None, Tensor]] = []
        x_TD = token_ids_T  # what there is when there is but one stage
        for rows, context in zip(ranges, contexts, strict=True):
            if self.place.stage:
                x_TD = self._receive(rows)
            begun = time.perf_counter()
            if not self.place.stage:
                x_TD = self.model.embed(token_ids_T[rows], positions_T[rows])
            x_TD = run_stage(self.model, x_TD, positions_T[rows], context)
            self.busy_seconds += time.perf_counter() - begun
            if self.place.pipeline > 1:
                x_TD = x_TD.contiguous()
                hop = self.hops[self.rank, self.after]
                sending.append((dist.isend(x_TD, self.after, group=hop), x_TD))
        if self.place.stage == 0 and self.place.pipeline > 1:
            x_TD = torch.cat([self._receive(rows) for rows in ranges])
        for work, _ in sending:
            if work is not None:
                work.wait()
        if self.place.stage:
            return None
        return x_TD if self.model.norm is None else self.model.norm(x_TD)

    def _receive(self, rows: slice) -> Tensor:
        size = rows.stop - rows.start, self.model.config.hidden_size
        x_TD = torch.empty(size, dtype=self.model.dtype, device=self.model.device)
        dist.recv(x_TD, self.before, group=self.hops[self.before, self.rank])
        return x_TD

    def unembed(self, hidden_SD: Tensor) -> Tensor:
        """On all ranks of the first stage at once; ``hidden_SD`` is overwritten on all but the first."""
        if self.tensor_group is not None:
            dist.broadcast(hidden_SD, 0, group=self.tensor_group.group)
        return self.model.unembed(hidden_SD)

    @property
    def helps_unembed(self) -> bool:
        return self.place.tensor > 1 and self.place.stage == 0


def agree(number: int) -> int:
    """The smallest of all ranks' numbers."""
    smallest = torch.tensor([number])
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest)
