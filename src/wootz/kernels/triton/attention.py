"""Causal attention over paged keys and values, read where they lie (PagedAttention, arXiv 2309.06180).

Both kernels are one loop, `_scan`: a tile of queries goes over a run of keys with the online softmax of FlashAttention
(arXiv 2205.14135). They differ in what a tile is, and who adds up.

- **Decode** (`_decode`, then `_combine`): the queries of one token. One program for a sequence would leave most of a
  GPU idle, so its keys are cut into runs of `SPLIT` and each run has a program (Flash-Decoding; Dao et al., 2023).
  Bound by reading the cache once: ``length * 2 * K * d`` numbers a sequence and layer.
- **Prefill** (`_prefill`): as many tokens of one chunk as fill a tile. Chunks of many lengths lie end to end in one
  launch; a list of tiles says which program has which tokens. Bound by arithmetic, ``4 * H * d`` operations for each
  query and key it sees.

The ``H / K`` query heads that share a key/value head are rows of the same tile (row r is token ``r // group``, head
``r % group``), so each key is read once for all of them.

A run's borders are multiples of `SPLIT` of the text's own places, never a matter of who else is in the batch or how
full the GPU is: sums are made in the same order in any company. That may leave programs unused at batch 1, and is what
the engine promises.

Legend, as in the models: T tokens, H query heads, K key/value heads, d head dimension (D padded to a power of two),
B sequences; in a program M rows of queries and L keys at a time.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (A launch takes plain numbers for `constexpr` parameters, and options of the compiler beside them.)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from wootz.kernels.triton.float8 import e4m3_numbers

SPLIT = 256
"""Keys of one decoding program."""

_LOG2E = tl.constexpr(1.4426950408889634)


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
    _decode[batch, kv_heads, splits](
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
        _combine[batch, heads](
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
    _prefill[len(chunks.tiles_P2), kv_heads](
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


# --- on the device --------------------------------------------------------------------------------------------------


@triton.jit
def _scan(
    q_MD,
    places_M,
    first,
    last,
    max_M,
    sum_M,
    table,
    kv,
    scales,
    zeros,
    head,
    scale,
    softcap,
    kv_heads,
    block_size,
    M: tl.constexpr,
    DIM: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    FLOAT8: tl.constexpr,
    INT8: tl.constexpr,
):
    """Queries at ``places`` over the keys ``[first, last)`` of their text: the weighted values, not yet divided, and
    the largest score (in base 2) and the sum of weights, which begin as they are given."""
    dims_D = tl.arange(0, D)
    acc_MD = tl.zeros((M, D), tl.float32)
    for start in range(first // L * L, last, L):
        keys_L = start + tl.arange(0, L)
        inside_L = keys_L < last
        blocks_L = tl.load(table + keys_L // block_size, mask=inside_L, other=0).to(tl.int64)
        vectors_L = (blocks_L * block_size + keys_L % block_size) * 2 * kv_heads + head
        mask_LD = inside_L[:, None] & (dims_D < DIM)[None, :]
        offsets_LD = vectors_L[:, None] * DIM + dims_D[None, :]
        k_LD = tl.load(kv + offsets_LD, mask=mask_LD, other=0)
        v_LD = tl.load(kv + offsets_LD + kv_heads * DIM, mask=mask_LD, other=0)
        if FLOAT8:
            k_LD, v_LD = e4m3_numbers(k_LD), e4m3_numbers(v_LD)
        if FLOAT8 or INT8:
            k_scale_L = tl.load(scales + vectors_L, mask=inside_L, other=0).to(tl.float32)
            v_scale_L = tl.load(scales + vectors_L + kv_heads, mask=inside_L, other=0).to(tl.float32)
            k_LD, v_LD = k_LD.to(tl.float32) * k_scale_L[:, None], v_LD.to(tl.float32) * v_scale_L[:, None]
        if INT8:
            k_zero_L = tl.load(zeros + vectors_L, mask=inside_L, other=0).to(tl.float32)
            v_zero_L = tl.load(zeros + vectors_L + kv_heads, mask=inside_L, other=0).to(tl.float32)
            k_LD, v_LD = k_LD + k_zero_L[:, None], v_LD + v_zero_L[:, None]
        k_LD, v_LD = k_LD.to(q_MD.dtype), v_LD.to(q_MD.dtype)
        scores_ML = tl.dot(q_MD, tl.trans(k_LD), input_precision="ieee") * scale
        if SOFTCAP:
            scores_ML = softcap * (2 * tl.sigmoid(2 * scores_ML / softcap) - 1)  # tanh
        seen_ML = inside_L[None, :] & (keys_L[None, :] <= places_M[:, None])
        if WINDOW > 0:
            seen_ML = seen_ML & (keys_L[None, :] > places_M[:, None] - WINDOW)
        scores_ML = tl.where(seen_ML, scores_ML * _LOG2E, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(scores_ML, 1))
        finite_M = tl.where(new_max_M == float("-inf"), 0.0, new_max_M)  # a row that has seen no key yet
        weights_ML = tl.exp2(scores_ML - finite_M[:, None])
        kept_M = tl.exp2(max_M - finite_M)
        sum_M = sum_M * kept_M + tl.sum(weights_ML, 1)
        acc_MD = acc_MD * kept_M[:, None] + tl.dot(weights_ML.to(v_LD.dtype), v_LD, input_precision="ieee")
        max_M = new_max_M
    return acc_MD, max_M, sum_M


@triton.jit
def _decode(
    q,
    q_stride,
    tables,
    tables_stride,
    lengths,
    out,
    log_sums,
    kv,
    scales,
    zeros,
    sinks,
    scale,
    softcap,
    heads,
    kv_heads,
    block_size,
    SPLITS: tl.constexpr,
    RUN: tl.constexpr,
    M: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    FLOAT8: tl.constexpr,
    INT8: tl.constexpr,
):
    """One sequence, one key/value head, one run of keys. With a single run it writes the answer itself."""
    sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    visible = 0
    if WINDOW > 0:
        visible = tl.maximum(length - WINDOW, 0)
    begin = (visible // RUN + split) * RUN
    if begin < length:
        rows_M, dims_D = tl.arange(0, M), tl.arange(0, D)
        heads_M = head * GROUP + rows_M
        mask_M = rows_M < GROUP
        mask_MD = mask_M[:, None] & (dims_D < DIM)[None, :]
        q_MD = tl.load(
            q + sequence.to(tl.int64) * q_stride + heads_M[:, None] * DIM + dims_D[None, :], mask=mask_MD, other=0
        )
        max_M = tl.full((M,), float("-inf"), tl.float32)
        sum_M = tl.zeros((M,), tl.float32)
        acc_MD, max_M, sum_M = _scan(
            q_MD,
            tl.zeros((M,), tl.int32) + (length - 1),
            tl.maximum(begin, visible),
            tl.minimum(begin + RUN, length),
            max_M,
            sum_M,
            tables + sequence.to(tl.int64) * tables_stride,
            kv,
            scales,
            zeros,
            head,
            scale,
            softcap,
            kv_heads,
            block_size,
            M,
            DIM,
            D,
            L,
            WINDOW,
            SOFTCAP,
            FLOAT8,
            INT8,
        )
        place_M = (sequence.to(tl.int64) * heads + heads_M) * SPLITS + split
        out_MD, log_sum_M = acc_MD / sum_M[:, None], max_M + tl.log2(sum_M)
        if SPLITS > 1:
            tl.store(log_sums + place_M, log_sum_M, mask=mask_M)
        elif SINKS:  # as `_combine` does it
            sink_M = tl.load(sinks + heads_M, mask=mask_M, other=0).to(tl.float32) * _LOG2E
            new_M = tl.maximum(log_sum_M, sink_M)
            kept_M = tl.exp2(log_sum_M - new_M)
            out_MD = out_MD * kept_M[:, None] / (kept_M + tl.exp2(sink_M - new_M))[:, None]
        tl.store(out + place_M[:, None] * DIM + dims_D[None, :], out_MD.to(out.dtype.element_ty), mask=mask_MD)


@triton.jit
def _combine(
    partial,
    log_sums,
    lengths,
    out,
    sinks,
    SPLITS: tl.constexpr,
    RUN: tl.constexpr,
    DIM: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
):
    """The runs of one head of one sequence, weighted by what each has of the whole softmax, in their order."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + sequence)
    skipped = 0
    if WINDOW > 0:
        skipped = tl.maximum(length - WINDOW, 0) // RUN
    num_runs = tl.cdiv(length, RUN) - skipped
    dims_D = tl.arange(0, D)
    place = sequence.to(tl.int64) * tl.num_programs(1) + head
    largest = tl.load(log_sums + place * SPLITS)
    total = 1.0
    acc_D = tl.load(partial + place * SPLITS * DIM + dims_D, mask=dims_D < DIM, other=0.0)
    for run in range(1, num_runs):
        log_sum = tl.load(log_sums + place * SPLITS + run)
        run_D = tl.load(partial + (place * SPLITS + run) * DIM + dims_D, mask=dims_D < DIM, other=0.0)
        new = tl.maximum(largest, log_sum)
        kept, weight = tl.exp2(largest - new), tl.exp2(log_sum - new)
        acc_D = acc_D * kept + run_D * weight
        total = total * kept + weight
        largest = new
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * _LOG2E
        new = tl.maximum(largest, sink)
        acc_D = acc_D * tl.exp2(largest - new)
        total = total * tl.exp2(largest - new) + tl.exp2(sink - new)
    tl.store(out + place * DIM + dims_D, (acc_D / total).to(out.dtype.element_ty), mask=dims_D < DIM)


@triton.jit
def _prefill(
    q,
    q_stride,
    tables,
    tables_stride,
    rows,
    tokens,
    starts,
    tiles,
    out,
    kv,
    scales,
    zeros,
    sinks,
    scale,
    softcap,
    heads,
    kv_heads,
    block_size,
    M: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    FLOAT8: tl.constexpr,
    INT8: tl.constexpr,
):
    """One tile of one chunk's tokens, with the heads of one group."""
    program, head = tl.program_id(0), tl.program_id(1)
    chunk, first = tl.load(tiles + program * 2), tl.load(tiles + program * 2 + 1)
    row, start = tl.load(rows + chunk), tl.load(starts + chunk)
    stop = tl.minimum(first + M // GROUP, tl.load(tokens + chunk))
    rows_M, dims_D = tl.arange(0, M), tl.arange(0, D)
    tokens_M = first + rows_M // GROUP
    heads_M = head * GROUP + rows_M % GROUP
    mask_M = tokens_M < stop
    mask_MD = mask_M[:, None] & (dims_D < DIM)[None, :]
    q_offsets_M = (row + tokens_M).to(tl.int64) * q_stride + heads_M * DIM
    q_MD = tl.load(q + q_offsets_M[:, None] + dims_D[None, :], mask=mask_MD, other=0)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(start + first - WINDOW + 1, 0)
    max_M = tl.full((M,), float("-inf"), tl.float32)
    sum_M = tl.zeros((M,), tl.float32)
    if SINKS:
        max_M = tl.load(sinks + heads_M, mask=mask_M, other=0).to(tl.float32) * _LOG2E
        sum_M += 1.0
    acc_MD, max_M, sum_M = _scan(
        q_MD,
        start + tokens_M,
        begin,
        start + stop,
        max_M,
        sum_M,
        tables + chunk.to(tl.int64) * tables_stride,
        kv,
        scales,
        zeros,
        head,
        scale,
        softcap,
        kv_heads,
        block_size,
        M,
        DIM,
        D,
        L,
        WINDOW,
        SOFTCAP,
        FLOAT8,
        INT8,
    )
    out_offsets_M = ((row + tokens_M).to(tl.int64) * heads + heads_M) * DIM
    out_MD = acc_MD / tl.where(sum_M > 0, sum_M, 1.0)[:, None]  # rows beyond the tile have seen nothing
    tl.store(out + out_offsets_M[:, None] + dims_D[None, :], out_MD.to(out.dtype.element_ty), mask=mask_MD)
