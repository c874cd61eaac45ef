"""Attention on the device: the programs that `attention` launches.

All are one loop, `scan`: a tile of queries goes over a run of keys with the online softmax of FlashAttention
(arXiv 2205.14135). They differ in what a tile is, and who adds up.

Legend, as in `attention`; in a program M rows of queries and L keys at a time, D the head dimension padded to a power
of two.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (A launch takes plain numbers for `constexpr` parameters, and options of the compiler beside them.)

from __future__ import annotations

import triton
import triton.language as tl

from wootz.kernels.triton.float8 import e4m3_numbers

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def scan(
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
def decode_run(
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
        acc_MD, max_M, sum_M = scan(
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
        elif SINKS:  # as `combine_runs` does it
            sink_M = tl.load(sinks + heads_M, mask=mask_M, other=0).to(tl.float32) * _LOG2E
            new_M = tl.maximum(log_sum_M, sink_M)
            kept_M = tl.exp2(log_sum_M - new_M)
            out_MD = out_MD * kept_M[:, None] / (kept_M + tl.exp2(sink_M - new_M))[:, None]
        tl.store(out + place_M[:, None] * DIM + dims_D[None, :], out_MD.to(out.dtype.element_ty), mask=mask_MD)


@triton.jit
def combine_runs(
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
def prefill_tile(
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
    acc_MD, max_M, sum_M = scan(
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
