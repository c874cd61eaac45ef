"""Which places in the cache the rows of a step look at, as index tensors and masks; for `PagedContext`.

They are made once per step and window, and serve every layer. Decodes are put in groups, in each of which the shortest
is at least half as long as the longest, which bounds the padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wootz.engine.scheduler import Chunk
from wootz.engine.speculation.draft import Draft
from wootz.models.context import relative_places, visible

if TYPE_CHECKING:
    from wootz.engine.attention import PagedCache


@dataclass(frozen=True)
class Decodes:
    """Sequences that compute one token each."""

    rows_B: Tensor
    blocks: Tensor
    """Block numbers ``(B * L / block_size,)``; short sequences repeat block 0, which their mask hides."""
    relative_B1L: Tensor
    """Each gathered place minus the token's own."""
    visible_B11L: Tensor
    mask_B11L: Tensor
    """0 where a token may look, -inf beyond the sequence's end and before its window."""


@dataclass(frozen=True)
class Prefill:
    """Several tokens of one sequence."""

    rows: slice
    blocks: Tensor | None
    """The sequence's blocks, as far as they may be looked at; None for a prompt's first chunk, which needs nothing
    from the cache."""
    num_keys: int
    relative_QL: Tensor
    mask_QL: Tensor | None
    """None for a chunk's own causal mask."""


def decodes_of(decoding: list[tuple[int, Chunk]], cache: PagedCache, window: int | None) -> list[Decodes]:
    return [_decodes(group, cache, window) for group in _similar_in_length(decoding, window)]


def _first_block(end: int, num_tokens: int, window: int | None, block_size: int) -> int:
    """The first block that the last ``num_tokens`` tokens before ``end`` may look into."""
    return 0 if window is None else max(0, end - num_tokens - window + 1) // block_size


def prefill_of(chunk: Chunk, row: int, cache: PagedCache, window: int | None) -> Prefill:
    rows, num_rows, end = slice(row, row + chunk.num_rows), chunk.num_rows, chunk.start + chunk.num_rows
    first = _first_block(end, num_rows, window, cache.block_size) if chunk.start else 0
    num_keys = end - first * cache.block_size
    relative_QL = relative_places(num_rows, num_keys, cache.device)
    blocks = mask_QL = None
    if chunk.start:
        own = chunk.sequence.table.blocks[first : -(-end // cache.block_size)]
        blocks = torch.tensor(own, device=cache.device)
    if chunk.draft is not None and not chunk.draft.is_chain:
        relative_QL, mask_QL = _branching(chunk, chunk.draft, first * cache.block_size, window, cache.device)
    elif chunk.start or (window is not None and end > window):
        mask_QL = visible(relative_QL, True, window)
    return Prefill(rows, blocks, num_keys, relative_QL, mask_QL)


def _branching(
    chunk: Chunk, draft: Draft, first_key: int, window: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Key place minus query place, and who sees whom ``(Q, L)``, where the branches of a draft stand side by side."""
    queries_Q = torch.tensor(chunk.positions, device=device)
    keys_L = torch.cat((torch.arange(first_key, chunk.end, device=device), queries_Q[chunk.num_tokens :]))
    relative_QL = keys_L - queries_Q[:, None]
    mask_QL = visible(relative_QL, True, window)
    mask_QL[-len(draft) :, -len(draft) :] &= draft.ancestry_NN.to(device)
    return relative_QL, mask_QL


def _similar_in_length(decodes: list[tuple[int, Chunk]], window: int | None) -> list[list[tuple[int, Chunk]]]:
    def length(chunk: Chunk) -> int:
        return chunk.end if window is None else min(chunk.end, window)

    groups: list[list[tuple[int, Chunk]]] = []
    for row, chunk in sorted(decodes, key=lambda decode: -length(decode[1])):
        if not groups or 2 * length(chunk) < length(groups[-1][0][1]):
            groups.append([])
        groups[-1].append((row, chunk))
    return groups


def _decodes(group: list[tuple[int, Chunk]], cache: PagedCache, window: int | None) -> Decodes:
    size, device = cache.block_size, cache.device
    firsts = [_first_block(chunk.end, 1, window, size) for _, chunk in group]
    num_blocks = max(-(-chunk.end // size) - first for first, (_, chunk) in zip(firsts, group, strict=True))
    blocks = []
    for first, (_, chunk) in zip(firsts, group, strict=True):
        own = chunk.sequence.table.blocks[first : first + num_blocks]
        blocks += own + [0] * (num_blocks - len(own))
    own_place_B = torch.tensor(
        [chunk.end - 1 - first * size for first, (_, chunk) in zip(firsts, group, strict=True)], device=device
    )
    relative_BL = torch.arange(num_blocks * size, device=device) - own_place_B[:, None]
    visible_BL = visible(relative_BL, True, window)
    mask_BL = torch.zeros(visible_BL.shape, dtype=cache.dtype, device=device).masked_fill_(~visible_BL, float("-inf"))
    return Decodes(
        rows_B=torch.tensor([row for row, _ in group], device=device),
        blocks=torch.tensor(blocks, device=device),
        relative_B1L=relative_BL[:, None],
        visible_B11L=visible_BL[:, None, None],
        mask_B11L=mask_BL[:, None, None],
    )
