"""A few tokens times a weight of four bits, which is turned into numbers in registers (as in AWQ's and Marlin's
kernels, arXiv 2306.00978 and 2408.11743, without their layouts).

The weight is `wootz.models.quantized_weight.IntWeight`'s, whatever checkpoint it came from: two levels to a byte, the
even column in the low half, with a scale and perhaps a zero for each group of a row. Even and odd columns are two
products, so that levels need not be put in order. Bound by memory at few tokens: ``O * I / 2`` bytes, and scales; with
many it is better to dequantise once and use PyTorch's product.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (A launch takes plain numbers for `constexpr` parameters, and options of the compiler beside them.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_TOKENS = 64
"""From here on it should pay to dequantise first (the weight is read once for each 16 tokens here). An estimate."""


def multiplies(columns: int, groups: int) -> bool:
    """Whether the kernel takes rows of so many columns in so many groups: a step of its loop stays inside one."""
    return columns % groups == 0 and (columns // groups) % 32 == 0


def linear(x_TI: Tensor, data_OJ: Tensor, scale_OG: Tensor, zero_OG: Tensor | None) -> Tensor:
    """``(T, O)`` in x's dtype. ``data`` is uint8 ``(O, I / 2)``, ``zero`` uint8 or None for 8. All contiguous."""
    tokens, columns = x_TI.shape
    outputs, groups = scale_OG.shape
    out_TO = torch.empty((tokens, outputs), dtype=x_TI.dtype, device=x_TI.device)
    group_size = columns // groups
    step = next(size for size in (128, 64, 32) if group_size % size == 0)
    _linear[triton.cdiv(outputs, 32), triton.cdiv(tokens, 16)](
        x_TI,
        data_OJ,
        scale_OG,
        scale_OG if zero_OG is None else zero_OG,
        out_TO,
        tokens,
        outputs,
        columns,
        groups,
        T=16,
        OUT=32,
        J=step // 2,
        STEPS=group_size // step,
        ZEROS=zero_OG is not None,
    )
    return out_TO


@triton.jit
def _linear(
    x,
    data,
    scales,
    zeros,
    out,
    tokens,
    outputs,
    columns,
    groups,
    T: tl.constexpr,
    OUT: tl.constexpr,
    J: tl.constexpr,
    STEPS: tl.constexpr,
    ZEROS: tl.constexpr,
):
    """A tile of T tokens and O outputs; each step J bytes, so 2 J columns, of one group."""
    outputs_O = tl.program_id(0) * OUT + tl.arange(0, OUT)
    tokens_T = tl.program_id(1) * T + tl.arange(0, T)
    bytes_J = tl.arange(0, J)
    mask_O, mask_T1 = outputs_O < outputs, (tokens_T < tokens)[:, None]
    acc_TO = tl.zeros((T, OUT), tl.float32)
    for group in range(groups):
        scale_O = tl.load(scales + outputs_O * groups + group, mask=mask_O, other=0).to(tl.float32)
        zero_O = tl.full((OUT,), 8, tl.float32)
        if ZEROS:
            zero_O = tl.load(zeros + outputs_O * groups + group, mask=mask_O, other=0).to(tl.float32)
        group_TO = tl.zeros((T, OUT), tl.float32)
        for step in range(STEPS):
            places_J = (group * STEPS + step) * J + bytes_J
            offsets_JO = outputs_O.to(tl.int64)[None, :] * (columns // 2) + places_J[:, None]
            packed_JO = tl.load(data + offsets_JO, mask=mask_O[None, :], other=0)
            even_TJ = tl.load(x + tokens_T[:, None] * columns + 2 * places_J[None, :], mask=mask_T1, other=0)
            odd_TJ = tl.load(x + tokens_T[:, None] * columns + 2 * places_J[None, :] + 1, mask=mask_T1, other=0)
            # Levels minus zero are small integers, exact in any dtype of x.
            low_JO = ((packed_JO & 15).to(tl.float32) - zero_O[None, :]).to(even_TJ.dtype)
            high_JO = ((packed_JO >> 4).to(tl.float32) - zero_O[None, :]).to(even_TJ.dtype)
            group_TO += tl.dot(even_TJ, low_JO, input_precision="ieee")
            group_TO += tl.dot(odd_TJ, high_JO, input_precision="ieee")
        acc_TO += group_TO * scale_O[None, :]
    places_TO = tokens_T[:, None].to(tl.int64) * outputs + outputs_O[None, :]
    tl.store(out + places_TO, acc_TO.to(out.dtype.element_ty), mask=mask_T1 & mask_O[None, :])
