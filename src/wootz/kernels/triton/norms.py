"""RMSNorm (arXiv 1910.07467) with the sum that stands before it in a decoder.

Between two parts of a layer the residual stream is read, added to, written, and read again to be normalised. Here one
program does all of it to one token, in registers. Bound by memory: the stream and what is added are read once, the
stream and the normalised tokens are written once, ``4 * T * D`` numbers.

Statistics are taken in float32. What is kept of the sum is rounded to its dtype before it is normalised, as PyTorch's
operations one by one would.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (A launch takes plain numbers for `constexpr` parameters, and options of the compiler beside them.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def add_norm(
    x_TD: Tensor,
    added_TD: Tensor | None,
    added_scale_D: Tensor | None,
    scale_D: Tensor | None,
    eps: float,
    offset: float = 0.0,
) -> Tensor:
    """``x += norm(added, added_scale)``, in place, and then ``norm(x, scale)``. All are contiguous and of one dtype;
    ``offset`` is added to scales (Gemma).

    A norm without a scale is left out: so this is "pre" (``scale`` only), "output" (``added_scale`` only, whose result
    is ``x`` itself) and "sandwich" (both), see `wootz.models.decoder.NormPlacement`.
    """
    tokens, size = x_TD.shape
    out_TD = x_TD if scale_D is None else torch.empty_like(x_TD)
    _add_norm[tokens,](
        x_TD,
        x_TD if added_TD is None else added_TD,
        x_TD if added_scale_D is None else added_scale_D,
        x_TD if scale_D is None else scale_D,
        out_TD,
        eps,
        offset,
        SIZE=size,
        D=triton.next_power_of_2(size),
        ADDS=added_TD is not None,
        NORMS_ADDED=added_scale_D is not None,
        NORMS=scale_D is not None,
        num_warps=8 if size >= 4096 else 4,
    )
    return out_TD


@triton.jit
def _add_norm(
    x,
    added,
    added_scale,
    scale,
    out,
    eps,
    offset,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    ADDS: tl.constexpr,
    NORMS_ADDED: tl.constexpr,
    NORMS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * SIZE
    dims_D = tl.arange(0, D)
    mask_D = dims_D < SIZE
    x_D = tl.load(x + row + dims_D, mask=mask_D, other=0)
    if ADDS:
        added_D = tl.load(added + row + dims_D, mask=mask_D, other=0)
        if NORMS_ADDED:
            added_D = _normalised(added_D, added_scale, dims_D, mask_D, eps, offset, SIZE)
        x_D = (x_D.to(tl.float32) + added_D.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(x + row + dims_D, x_D, mask=mask_D)
    if NORMS:
        tl.store(out + row + dims_D, _normalised(x_D, scale, dims_D, mask_D, eps, offset, SIZE), mask=mask_D)


@triton.jit
def _normalised(x_D, scale, dims_D, mask_D, eps, offset, SIZE: tl.constexpr):
    wide_D = x_D.to(tl.float32)
    factor = 1 / tl.sqrt(tl.sum(wide_D * wide_D, 0) / SIZE + eps)
    scale_D = tl.load(scale + dims_D, mask=mask_D, other=0).to(tl.float32) + offset
    return (wide_D * factor * scale_D).to(x_D.dtype)
