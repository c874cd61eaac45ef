"""`PagedContext`: what a token may look at when keys and values live in blocks. Plain PyTorch, any device.

One tensor per layer, ``(num_blocks, block_size, 2, K, d)``: a token's key and value lie together, so one gather brings
both, and what was gathered is ``(…, L, 2, K, d)`` without a further copy. A step has two kinds of rows:

- *decodes*, one token per sequence, are attended to together, padded to the longest. To bound the padding they are put
  in groups, in each of which the shortest is at least half as long as the longest. On a CPU in float32 a kernel reads
  the blocks in place instead, if it was built (`wootz.kernels.decode`);
- *prefill chunks*, one by one: a prompt's first chunk over itself, a later one over its gathered blocks.

The G = H / K query heads that share a key/value head are laid out as G query positions of that head, so that each key
and value is read once, not G times. All index tensors are made once per step and serve every layer.

Shape suffixes are those of `wootz.models.context`; B sequences of a group, L token places gathered for each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wootz import kernels
from wootz.engine.scheduler import Chunk
from wootz.models.context import CacheSpec


class PagedCache:
    """The memory behind a `BlockPool`: zeros at first, which no page of real memory backs until it is written."""

    def __init__(
        self, specs: list[CacheSpec], num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_size = block_size
        self.layers = [
            _zeros((num_blocks, block_size, 2, spec.num_kv_heads, spec.head_dim), dtype, device) for spec in specs
        ]

    def copy(self, source: int, target: int) -> None:
        """Copy one block's content in every layer."""
        for layer in self.layers:
            layer[target] = layer[source]

    @staticmethod
    def block_bytes(specs: list[CacheSpec], block_size: int, dtype: torch.dtype) -> int:
        """Memory one block takes in all layers together."""
        return sum(2 * spec.num_kv_heads * spec.head_dim for spec in specs) * block_size * dtype.itemsize


@dataclass(frozen=True)
class Decodes:
    """Sequences that compute one token each."""

    rows_B: Tensor
    blocks: Tensor
    """Block numbers ``(B * L / block_size,)``; short sequences repeat block 0, which their mask hides."""
    mask_B11L: Tensor
    """0 where a token may look, -inf beyond the sequence's end."""


@dataclass(frozen=True)
class Prefill:
    """Several tokens of one sequence."""

    rows: slice
    end: int
    blocks: Tensor | None
    """The sequence's blocks; None for a prompt's first chunk, which needs nothing from the cache."""
    mask_TL: Tensor | None


class PagedContext:
    """The `Context` of one step. Rows of the flat run are the chunks' tokens, in the chunks' order."""

    def __init__(self, cache: PagedCache, chunks: list[Chunk]) -> None:
        self.cache = cache
        like = cache.layers[0]
        slots: list[int] = []
        decodes: list[tuple[int, Chunk]] = []
        self.prefills: list[Prefill] = []
        size = cache.block_size
        for chunk in chunks:
            row, blocks = len(slots), chunk.sequence.table.blocks
            slots += [blocks[p // size] * size + p % size for p in range(chunk.start, chunk.end)]
            if chunk.num_tokens == 1:
                decodes.append((row, chunk))
            else:
                self.prefills.append(_prefill(chunk, row, size, like.device))
        self.slots_T = torch.tensor(slots, device=like.device)
        self.tables = _tables(decodes) if decodes and kernels.can_decode(like) else None
        self.decodes = [] if self.tables else [_decodes(group, size, like) for group in _similar_in_length(decodes)]

    def attend(self, layer: int, q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, *, scale: float) -> Tensor:
        cache = self.cache.layers[layer]
        cache.flatten(0, 1).index_copy_(0, self.slots_T, torch.stack((k_TKd, v_TKd), dim=1))
        out_THd = q_THd.new_empty(q_THd.shape)
        num_kv_heads = k_TKd.shape[1]
        if self.tables is not None:
            kernels.decode(cache, q_THd, out_THd, *self.tables, scale)
        for group in self.decodes:
            q_BKGd = q_THd[group.rows_B].unflatten(1, (num_kv_heads, -1))
            kv = cache.index_select(0, group.blocks).view(len(q_BKGd), -1, *cache.shape[2:])
            k_BKLd, v_BKLd = kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
            out = F.scaled_dot_product_attention(q_BKGd, k_BKLd, v_BKLd, attn_mask=group.mask_B11L, scale=scale)
            out_THd[group.rows_B] = out.flatten(1, 2)
        for chunk in self.prefills:
            k, v = k_TKd[chunk.rows], v_TKd[chunk.rows]
            if chunk.blocks is not None:
                k, v = cache.index_select(0, chunk.blocks).flatten(0, 1)[: chunk.end].unbind(1)
            out_THd[chunk.rows] = F.scaled_dot_product_attention(
                q_THd[chunk.rows].transpose(0, 1).unsqueeze(0),
                k.transpose(0, 1).unsqueeze(0),
                v.transpose(0, 1).unsqueeze(0),
                attn_mask=chunk.mask_TL,
                is_causal=chunk.mask_TL is None,
                scale=scale,
                enable_gqa=True,
            )[0].transpose(0, 1)
        return out_THd


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On a CPU by way of NumPy, whose zeros come from the kernel page by page; `torch.zeros` writes them at once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def _prefill(chunk: Chunk, row: int, block_size: int, device: torch.device) -> Prefill:
    rows = slice(row, row + chunk.num_tokens)
    if chunk.start == 0:
        return Prefill(rows, chunk.end, None, None)
    blocks = torch.tensor(chunk.sequence.table.blocks[: -(-chunk.end // block_size)], device=device)
    mask_TL = torch.ones(chunk.num_tokens, chunk.end, dtype=torch.bool, device=device).tril(chunk.start)
    return Prefill(rows, chunk.end, blocks, mask_TL)


def _similar_in_length(decodes: list[tuple[int, Chunk]]) -> list[list[tuple[int, Chunk]]]:
    groups: list[list[tuple[int, Chunk]]] = []
    for row, chunk in sorted(decodes, key=lambda decode: -decode[1].end):
        if not groups or 2 * chunk.end < groups[-1][0][1].end:
            groups.append([])
        groups[-1].append((row, chunk))
    return groups


def _tables(decodes: list[tuple[int, Chunk]]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, block tables and lengths of all decodes, as `wootz.kernels.decode` takes them (int32)."""
    tables = [chunk.sequence.table.blocks for _, chunk in decodes]
    longest = max(map(len, tables))
    return (
        torch.tensor([row for row, _ in decodes], dtype=torch.int32),
        torch.tensor([table + [0] * (longest - len(table)) for table in tables], dtype=torch.int32),
        torch.tensor([chunk.end for _, chunk in decodes], dtype=torch.int32),
    )


def _decodes(group: list[tuple[int, Chunk]], block_size: int, like: Tensor) -> Decodes:
    """``group`` begins with its longest."""
    num_blocks = -(-group[0][1].end // block_size)
    blocks, ends = [], []
    for _, chunk in group:
        own = chunk.sequence.table.blocks[:num_blocks]
        blocks += own + [0] * (num_blocks - len(own))
        ends.append([chunk.end])
    places_L = torch.arange(num_blocks * block_size, device=like.device)
    mask_BL = torch.zeros(len(group), len(places_L), dtype=like.dtype, device=like.device)
    mask_BL.masked_fill_(places_L >= torch.tensor(ends, device=like.device), float("-inf"))
    return Decodes(
        rows_B=torch.tensor([row for row, _ in group], device=like.device),
        blocks=torch.tensor(blocks, device=like.device),
        mask_B11L=mask_BL[:, None, None],
    )
