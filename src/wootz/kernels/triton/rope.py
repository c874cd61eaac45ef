"""What happens to queries, keys and values between their projection and attention, in one pass (RoFormer, arXiv
2104.09864; normalised queries and keys, arXiv 2302.05442).

One program takes one head of one token: it normalises it if the model does (Qwen3), turns it by its token's angles, and
stores it where attention reads it, which for keys and values is their place in the cache. Bound by memory: what the
projection wrote is read once, and written once.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (A launch takes plain numbers for `constexpr` parameters, and options of the compiler beside them.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def rotate_and_store(
    qkv_TEd: Tensor,
    cos_Tr: Tensor,
    sin_Tr: Tensor,
    kv: Tensor,
    slots_T: Tensor,
    num_heads: int,
    *,
    q_scale_d: Tensor | None = None,
    k_scale_d: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
) -> Tensor:
    """The turned queries ``(T, H, d)``; keys and values go into ``kv`` ``(num_blocks, block_size, 2, K, d)``.

    ``qkv`` is contiguous, ``E = H + 2 K`` heads: queries, keys, values. The first ``r`` dimensions of a head turn, i
    with ``i + r / 2``; ``cos`` and ``sin`` are `wootz.models.positions.rotary.Rotation`'s, sign included. ``slots_T``
    (int64) are places, ``block * block_size + place in block``. Scales, to which ``offset`` is added, normalise each
    head.
    """
    tokens, all_heads, dim = qkv_TEd.shape
    q_THd = torch.empty((tokens, num_heads, dim), dtype=qkv_TEd.dtype, device=qkv_TEd.device)
    _rotate_and_store[tokens, all_heads](
        qkv_TEd,
        cos_Tr,
        sin_Tr,
        q_THd,
        kv,
        slots_T,
        qkv_TEd if q_scale_d is None else q_scale_d,
        qkv_TEd if k_scale_d is None else k_scale_d,
        eps,
        offset,
        num_heads,
        kv.shape[3],
        DIM=dim,
        D=triton.next_power_of_2(dim),
        TURNED=cos_Tr.shape[-1],
        NORMS=q_scale_d is not None,
        num_warps=1,
    )
    return q_THd


@triton.jit
def _rotate_and_store(
    qkv,
    cos,
    sin,
    q,
    kv,
    slots,
    q_scale,
    k_scale,
    eps,
    offset,
    num_heads,
    num_kv_heads,
    DIM: tl.constexpr,
    D: tl.constexpr,
    TURNED: tl.constexpr,
    NORMS: tl.constexpr,
):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    source = qkv + (token * tl.num_programs(1) + head) * DIM
    dims_D = tl.arange(0, D)
    mask_D = dims_D < DIM
    x_D = tl.load(source + dims_D, mask=mask_D, other=0)
    if head < num_heads + num_kv_heads:
        # A dimension's partner is read beside it: in registers a value cannot reach another thread's.
        half = TURNED // 2
        partners_D = tl.where(dims_D < half, dims_D + half, dims_D - half)
        turns_D = dims_D < TURNED
        partner_D = tl.load(source + partners_D, mask=turns_D, other=0)
        if NORMS:
            wide_D = x_D.to(tl.float32)
            factor = 1 / tl.sqrt(tl.sum(wide_D * wide_D, 0) / DIM + eps)
            scale = q_scale
            if head >= num_heads:
                scale = k_scale
            scale_D = tl.load(scale + dims_D, mask=mask_D, other=0).to(tl.float32) + offset
            partner_scale_D = tl.load(scale + partners_D, mask=turns_D, other=0).to(tl.float32) + offset
            x_D = (wide_D * factor * scale_D).to(x_D.dtype)
            partner_D = (partner_D.to(tl.float32) * factor * partner_scale_D).to(x_D.dtype)
        cos_D = tl.load(cos + token * TURNED + dims_D, mask=turns_D, other=1).to(tl.float32)
        sin_D = tl.load(sin + token * TURNED + dims_D, mask=turns_D, other=0).to(tl.float32)
        x_D = (x_D.to(tl.float32) * cos_D + partner_D.to(tl.float32) * sin_D).to(x_D.dtype)
    if head < num_heads:
        tl.store(q + (token * num_heads + head) * DIM + dims_D, x_D, mask=mask_D)
    else:
        # A slot's keys and values are 2 K heads, keys first, as they are here.
        place = tl.load(slots + token) * 2 * num_kv_heads + head - num_heads
        tl.store(kv + place * DIM + dims_D, x_D.to(kv.dtype.element_ty), mask=mask_D)
