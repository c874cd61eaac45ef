"""Causal attention over paged keys and values, read where they lie (PagedAttention, arXiv 2309.06180).

What runs on the device is in `attention_programs`; here is what is launched, and over which tiles.

- **Decode** (`decode_run`, then `combine_runs`): the queries of one token. One program for a sequence would leave most
  of a GPU idle, so its keys are cut into runs of `SPLIT`, each with a program (Flash-Decoding; Dao et al., 2023).
  Bound by reading the cache once: ``length * 2 * K * d`` numbers a sequence and layer.
- **Prefill** (`prefill_tile`): as many tokens of one chunk as fill a tile. Chunks of many lengths lie end to end in one
  launch; a list of tiles says which program has which tokens. Bound by arithmetic, ``4 * H * d`` operations for each
  query and key it sees.

The ``H / K`` query heads that share a key/value head are rows of the same tile (row r is token ``r // group``, head
``r % group``), so each key is read once for all of them.

A run's borders are multiples of `SPLIT` of the text's own places, never a matter of who else is in the batch or how
full the GPU is: sums are made in the same order in any company. That may leave programs unused at batch 1, and is what
the engine promises.

Legend, as in the models: T tokens, H query heads, K key/value heads, d head dimension (D padded to a power of two),
B sequences.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (A launch takes plain numbers for `constexpr` parameters, and options of the compiler beside them.)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from wootz.kernels.triton.attention_programs import combine_runs, decode_run, prefill_tile

SPLIT = 256
"""Keys of one decoding program."""


@dataclass(frozen=True)
class Cache:
    """One layer's blocks. ``kv`` is contiguous, ``(num_blocks, block_size, 2, K, d)``: numbers, or codes in uint8 of
    which each token's head has a ``scale`` ``(num_blocks, block_size, 2, K, 1)``. Codes with a ``zero`` of that shape
    are integers, ``code * scale + zero``; without, they are E4M3, ``code * scale``."""

    kv: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None


@dataclass(frozen=True)
class Scoring:
    """What stands between ``q·k`` and its weight; see `wootz.models.context.Context.attend`."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks_H: Tensor | None = None


def decode(
    q_BHd: Tensor, cache: Cache, tables_BN: Tensor, lengths_B: Tensor, scoring: Scoring, *, longest: int
) -> Tensor:
    """One token of each sequence, over all its ``lengths_B`` tokens, itself the last: ``(B, H, d)``.

    ``tables_BN`` (int32) has each sequence's blocks, ``lengths_B`` is int32. ``longest`` is at least the largest
    length, and decides how many programs there are and nothing else: a CUDA graph is captured for one.
    """
    batch, heads, dim = q_BHd.shape
    kv_heads = cache.kv.shape[3]
    # A window that does not begin at a border of runs touches one run more.
    reach = longest if scoring.window is None else min(longest, scoring.window + SPLIT - 1)
    splits = triton.cdiv(reach, SPLIT)
    out_BHd = torch.empty((batch, heads, dim), dtype=q_BHd.dtype, device=q_BHd.device)
    partial_BHSd = out_BHd
    log_sums_BHS = out_BHd
    if splits > 1:
        partial_BHSd = torch.empty((batch, heads, splits, dim), dtype=torch.float32, device=q_BHd.device)
        log_sums_BHS = torch.empty((batch, heads, splits), dtype=torch.float32, device=q_BHd.device)
    group = heads // kv_heads
    decode_run[batch, kv_heads, splits](
        q_BHd,
        q_BHd.stride(0),
        tables_BN,
        tables_BN.stride(0),
        lengths_B,
        partial_BHSd,
        log_sums_BHS,
        *_common(cache, scoring, heads),
        SPLITS=splits,
        RUN=SPLIT,
        M=max(16, triton.next_power_of_2(group)),
        GROUP=group,
        **_switches(cache, scoring, q_BHd),
    )
    if splits > 1:
        combine_runs[batch, heads](
            partial_BHSd,
            log_sums_BHS,
            lengths_B,
            out_BHd,
            q_BHd if scoring.sinks_H is None else scoring.sinks_H,
            SPLITS=splits,
            RUN=SPLIT,
            DIM=dim,
            D=triton.next_power_of_2(dim),
            WINDOW=scoring.window or 0,
            SINKS=scoring.sinks_H is not None,
        )
    return out_BHd


@dataclass(frozen=True)
class Chunks:
    """Where the chunks of a step lie, int32: of each its first row in the flat run, its number of tokens, the place of
    its first token in its text, and its sequence's blocks."""

    rows_C: Tensor
    tokens_C: Tensor
    starts_C: Tensor
    tables_CN: Tensor
    tiles_P2: Tensor
    """Of each program its chunk, and the first token of its tile in it; see `tiles`."""


ROWS = 64
"""Of a prefill tile, queries times the heads of their group."""


def tiles(tokens: list[int], group: int) -> list[tuple[int, int]]:
    """Cut chunks of so many tokens into tiles of as many as have room with a ``group`` of heads each."""
    step = ROWS // group if group <= ROWS else 1
    return [(chunk, first) for chunk, number in enumerate(tokens) for first in range(0, number, step)]


def prefill(q_THd: Tensor, out_THd: Tensor, cache: Cache, chunks: Chunks, scoring: Scoring) -> None:
    """Fill the chunks' rows of ``out``. Their own keys and values are in the cache already."""
    heads, kv_heads = q_THd.shape[1], cache.kv.shape[3]
    group = heads // kv_heads
    prefill_tile[len(chunks.tiles_P2), kv_heads](
        q_THd,
        q_THd.stride(0),
        chunks.tables_CN,
        chunks.tables_CN.stride(0),
        chunks.rows_C,
        chunks.tokens_C,
        chunks.starts_C,
        chunks.tiles_P2,
        out_THd,
        *_common(cache, scoring, heads),
        M=max(ROWS, triton.next_power_of_2(group)),
        GROUP=group,
        **_switches(cache, scoring, q_THd),
    )


def _common(cache: Cache, scoring: Scoring, heads: int) -> tuple[object, ...]:
    kv = cache.kv
    return (
        kv,
        kv if cache.scale is None else cache.scale,
        kv if cache.zero is None else cache.zero,
        kv if scoring.sinks_H is None else scoring.sinks_H,
        scoring.scale,
        scoring.softcap or 0.0,
        heads,
        kv.shape[3],
        kv.shape[1],
    )


def _switches(cache: Cache, scoring: Scoring, q: Tensor) -> dict[str, object]:
    dim = q.shape[-1]
    return {
        "DIM": dim,
        "D": max(16, triton.next_power_of_2(dim)),
        "L": 64 if dim * q.element_size() <= 256 else 32,
        "WINDOW": scoring.window or 0,
        "SOFTCAP": scoring.softcap is not None,
        "SINKS": scoring.sinks_H is not None,
        "FLOAT8": cache.scale is not None and cache.zero is None,
        "INT8": cache.zero is not None,
    }
