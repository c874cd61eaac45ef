"""A step's tokens spread over ranks that each hold the whole model: prompts are read R times as fast.

Every rank computes its rows; in each layer the new keys and values of all rows are gathered and written into the cache,
which is whole on every rank. (Llama 3 trained long contexts like this, arXiv 2407.21783.) So chunks, shared prefixes,
windows and decoding rows need nothing of their own. It saves time, not memory: what it is for is long prompts, with
``max_step_tokens`` in the thousands. For a text whose keys and values no single rank could hold, see the ring in
`wootz.models.parallel.sequence`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wootz.core import UnsupportedError
from wootz.engine.attention import PagedCache, PagedContext
from wootz.engine.parallel.rows import cut_chunks
from wootz.engine.scheduler import Chunk
from wootz.models.context import Advance, RecurrentState


class SequenceContext:
    """The `Context` of this rank's rows of a step: its queries, everybody's keys and values."""

    remembers = True

    def __init__(self, cache: PagedCache, chunks: list[Chunk], own: slice) -> None:
        self.cache = cache
        self.step = PagedContext(cache, chunks)
        self.own = PagedContext(cache, cut_chunks(chunks, own))
        self.num_rows = len(self.step.slots_T)

    def attend(self, slot: int, q_THd: Tensor, k_TKd: Tensor, v_TKe: Tensor, **how: Any) -> Tensor:
        kv_T2Kd = self.gather(torch.stack((k_TKd, v_TKe), dim=1))
        self.cache.layers[slot].flatten(0, 1).index_copy_(0, self.step.slots_T, kv_T2Kd)
        return self.own.attend(slot, q_THd, k_TKd, v_TKe, **how) if len(q_THd) else q_THd

    def attend_latent(self, slot: int, q_THd: Tensor, latent_Td: Tensor, *, value_dim: int, scale: float) -> Tensor:
        gathered_Td = self.gather(latent_Td)
        self.cache.layers[slot].flatten(0, 1).index_copy_(0, self.step.slots_T, gathered_Td)
        if not len(q_THd):
            return q_THd[..., :value_dim]
        return self.own.attend_latent(slot, q_THd, latent_Td, value_dim=value_dim, scale=scale)

    def recur(self, slot: int, spec: RecurrentState, advance: Advance, *inputs_T: Tensor) -> Tensor:
        raise UnsupportedError("a running state passes through a text in order: its tokens cannot be spread over ranks")

    def gather(self, x_T: Tensor) -> Tensor:
        """All ranks' rows, in order."""
        each = -(-self.num_rows // dist.get_world_size())
        padded = x_T.new_zeros((each, *x_T.shape[1:]))
        padded[: len(x_T)] = x_T
        parts = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, padded)
        return torch.cat(parts)[: self.num_rows]
