"""Which tokens a step has and where they lie, as the attention kernels are told.

`PagedStep` is any step; `DecodeStep` one token of each sequence, in tensors that stay where they are, for a CUDA graph.
Both answer `attend`, once a layer's keys and values are in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wootz.kernels import triton as kernels

if TYPE_CHECKING:
    from wootz.engine.kv_store import KVStore
    from wootz.engine.scheduler import Chunk
    from wootz.kernels.triton.attention import Cache, Chunks, Scoring

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels compute in."""


def readable(store: KVStore, q_THd: Tensor) -> Cache | None:
    """A layer's blocks as the kernels take them; None for formats, dtypes and devices that they do not serve."""
    if serves(q_THd.device, q_THd.dtype) and (store.format in DTYPES or store.format in ("fp8", "int8")):
        from wootz.kernels.triton.attention import Cache

        return Cache(*store.parts)
    return None


def scoring(scale: float, window: int | None, softcap: float | None, sinks_H: Tensor | None) -> Scoring:
    from wootz.kernels.triton.attention import Scoring

    return Scoring(scale, window, softcap, sinks_H)


class PagedStep:
    """``decoding`` and ``prefilling`` are chunks with their first rows, of one token and of several."""

    def __init__(
        self, decoding: list[tuple[int, Chunk]], prefilling: list[tuple[int, Chunk]], device: torch.device
    ) -> None:
        self.device, self.prefilling = device, prefilling
        self.tokens = [chunk.num_rows for _, chunk in prefilling]
        self.rows_B: Tensor | None = None
        """Of those that decode, where others compute too."""
        self.decodes: DecodeStep | None = None
        if decoding:
            lengths = [chunk.start + 1 for _, chunk in decoding]
            tables_BN = tables([chunk for _, chunk in decoding], device)
            self.decodes = DecodeStep(tables_BN, _int32(lengths, device), max(lengths))
            if prefilling:
                self.rows_B = torch.tensor([row for row, _ in decoding], device=device)
        self._chunks: dict[int, Chunks] = {}

    def attend(self, q_THd: Tensor, cache: Cache, scoring: Scoring) -> Tensor:
        from wootz.kernels.triton import attention

        if q_THd.stride()[1:] != (q_THd.shape[2], 1):
            q_THd = q_THd.contiguous()
        if self.decodes is not None and self.rows_B is None:
            return self.decodes.attend(q_THd, cache, scoring)
        out_THd = torch.empty(q_THd.shape, dtype=q_THd.dtype, device=self.device)
        if self.decodes is not None and self.rows_B is not None:
            out_THd[self.rows_B] = self.decodes.attend(q_THd[self.rows_B], cache, scoring)
        attention.prefill(q_THd, out_THd, cache, self._chunks_of(q_THd.shape[1] // cache.kv.shape[3]), scoring)
        return out_THd

    def _chunks_of(self, group: int) -> Chunks:
        """The prompts' chunks, cut into tiles for groups of so many heads."""
        from wootz.kernels.triton import attention

        if group not in self._chunks:
            self._chunks[group] = attention.Chunks(
                *self._places, _int32(attention.tiles(self.tokens, group), self.device)
            )
        return self._chunks[group]

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, starts = [row for row, _ in self.prefilling], [chunk.start for _, chunk in self.prefilling]
        rows_C, tokens_C, starts_C = _int32([rows, self.tokens, starts], self.device)
        return rows_C, tokens_C, starts_C, tables([chunk for _, chunk in self.prefilling], self.device)


@dataclass(frozen=True)
class DecodeStep:
    """``longest`` bounds the lengths; it decides how many programs run, not what they compute."""

    tables_BN: Tensor
    lengths_B: Tensor
    longest: int

    def attend(self, q_BHd: Tensor, cache: Cache, scoring: Scoring) -> Tensor:
        from wootz.kernels.triton import attention

        return attention.decode(q_BHd, cache, self.tables_BN, self.lengths_B, scoring, longest=self.longest)


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    return dtype in DTYPES and kernels.serves(device)


def tables(chunks: list[Chunk], device: torch.device) -> Tensor:
    """Block tables side by side, int32; short ones go on with block 0, which nobody looks at."""
    longest = max(len(chunk.sequence.table.blocks) for chunk in chunks)
    return _int32([(chunk.sequence.table.blocks + [0] * longest)[:longest] for chunk in chunks], device)


def _int32(numbers: list, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)
