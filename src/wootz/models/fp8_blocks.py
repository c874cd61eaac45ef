"""FP8 in blocks, in which DeepSeek-V3 and R1, and the FP8 releases of Qwen3, are published (arXiv 2412.19437, 3.3).

A weight ``(out, in)`` is float8_e4m3fn, and each block of 128 x 128 of it has one scale, by which it is multiplied
(``weight_scale_inv``: the inverse of what it was multiplied with to fit into eight bits). Where a side is not whole
blocks, the last one is cut short: the 576 rows of DeepSeek's latent projection have five scales.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dequantize_fp8_blocks(weight: Tensor, scales: Tensor, block: tuple[int, int] = (128, 128)) -> Tensor:
    """``weight`` (out, in) in any eight-bit float, ``scales`` (ceil(out / block), ceil(in / block)): float32, exact but
    for the rounding of one product. Raises ValueError for shapes that do not fit."""
    wanted = tuple(-(-size // side) for size, side in zip(weight.shape, block, strict=False))
    if weight.ndim != 2 or weight.dtype.itemsize != 1 or tuple(scales.shape) != wanted:
        raise ValueError(
            f"has {(*weight.shape,)} numbers of {weight.dtype}, but {(*scales.shape,)} scales of blocks {(*block,)}"
        )
    whole = torch.empty(weight.shape, dtype=torch.float32)
    for rows, some, scale in zip(whole.split(block[0]), weight.split(block[0]), scales.float(), strict=True):
        torch.mul(some.float(), scale.repeat_interleave(block[1])[: weight.shape[1]], out=rows)
    return whole
