"""Levels of a few bits in 32-bit words, end to end: value i of a row is bits ``b i`` to ``b i + b - 1``, lowest first.

That is how all layouts pack, once rows and columns are where they have them. Where b does not divide 32 (3 bits), a
value may lie across two words.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(levels_RC: Tensor, bits: int) -> Tensor:
    """uint8 ``(R, C)`` to int32 ``(R, ceil(C * bits / 32))``."""
    rows, columns = levels_RC.shape
    padding = -columns % 32
    levels_RC = torch.nn.functional.pad(levels_RC, (0, padding))
    if 8 % bits == 0:
        fields = levels_RC.unflatten(1, (-1, 8 // bits))
        in_bytes = fields[..., 0].clone()
        for place in range(1, 8 // bits):
            in_bytes |= fields[..., place] << place * bits
    else:
        single = levels_RC.unsqueeze(2) >> torch.arange(bits, dtype=torch.uint8) & 1
        eight = single.view(rows, -1, 8) << torch.arange(8, dtype=torch.uint8)
        in_bytes = eight.sum(2, dtype=torch.uint8)
    words = in_bytes.contiguous().view(torch.int32)
    return words[:, : -(-columns * bits // 32)].contiguous()


def unpack(words: Tensor, bits: int, columns: int) -> Tensor:
    """int32 ``(R, …)`` to uint8 ``(R, columns)``. Raises ValueError where the words do not hold so many."""
    if words.dtype != torch.int32 or words.ndim != 2 or words.shape[1] != -(-columns * bits // 32):
        raise ValueError(
            f"{words.dtype} {(*words.shape,)} does not hold rows of {columns} numbers of {bits} bits in 32-bit words"
        )
    in_bytes = words.contiguous().view(torch.uint8).view(len(words), words.shape[1] * 4)
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        return (in_bytes.unsqueeze(2) >> shifts & (1 << bits) - 1).flatten(1)[:, :columns]
    single = (in_bytes.unsqueeze(2) >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)
    single = single[:, : single.shape[1] // bits * bits].unflatten(1, (-1, bits))
    return (single << torch.arange(bits, dtype=torch.uint8)).sum(2, dtype=torch.uint8)[:, :columns]
