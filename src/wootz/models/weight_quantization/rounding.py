"""Symmetric rounding to the nearest step (RTN): ``w = scale * q``, with q in ``[-(2^(b-1) - 1), 2^(b-1) - 1]``.

One scale for the tensor, for each row, or for each group of columns within a row. Legend: O outputs, I inputs,
G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quantized:
    """``q_OI`` is int8 whatever the bits; ``scale`` float16, ``(O, G)``, ``(O, 1)`` or ``(1, 1)``."""

    q_OI: Tensor
    scale: Tensor
    bits: int

    @property
    def weight_OI(self) -> Tensor:
        """The float32 weight that this stands for."""
        return self.q_OI.float() * spread(self.scale.float(), self.q_OI.shape[1])

    @property
    def num_bytes(self) -> int:
        """Packed, scales included (which the usual "bits times parameters" leaves out)."""
        return -(-self.q_OI.numel() * self.bits // 8) + self.scale.numel() * 2


def round_to_nearest(weight_OI: Tensor, bits: int, *, group_size: int | None = None, per_row: bool = True) -> Quantized:
    """No weight is off by more than half a step. A row or group of zeros has scale 0 and stays zero."""
    scale = step_sizes(weight_OI, bits, group_size=group_size, per_row=per_row)
    return Quantized(round_with(weight_OI, spread(scale.float(), weight_OI.shape[1]), bits), scale, bits)


def step_sizes(weight_OI: Tensor, bits: int, *, group_size: int | None = None, per_row: bool = True) -> Tensor:
    """``max|w| / (2^(b-1) - 1)`` of each group, row or the whole tensor, in float16.

    Raises ValueError where a row is not whole groups.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"{bits} bits; from 2 to 8 are supported")
    columns = weight_OI.shape[1]
    if group_size is not None and columns % group_size:
        raise ValueError(f"rows of {columns} weights are not whole groups of {group_size}")
    largest = weight_OI.abs().float()
    if group_size is None and not per_row:
        largest = largest.amax().view(1, 1)
    else:
        largest = largest.unflatten(1, (-1, group_size or columns)).amax(2)
    return _half_rounded_up(largest / largest_level(bits))


def _half_rounded_up(scale: Tensor) -> Tensor:
    """Up, so that the largest weight is not out of reach, however small it is."""
    half = scale.half()
    return torch.where(half.float() < scale, (half.view(torch.int16) + 1).view(torch.float16), half)


def largest_level(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def spread(scale: Tensor, columns: int) -> Tensor:
    """A scale for each column."""
    return scale.repeat_interleave(columns // scale.shape[1], 1)


def round_with(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """int8 levels; zero where the scale is."""
    level = largest_level(bits)
    q = weight.float() / scale
    return torch.where(scale == 0, 0, q).round().clamp(-level, level).to(torch.int8)
