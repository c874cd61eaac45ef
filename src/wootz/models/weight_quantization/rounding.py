"""Symmetric rounding to the nearest step (RTN): ``w = scale * q``, with q in ``[-(2^(b-1) - 1), 2^(b-1) - 1]``.

One scale for the tensor, for each row, or for each group of columns within a row. Legend: O outputs, I inputs,
G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wootz.models.quantized_weight import IntWeight


@dataclass(frozen=True)
class Quantized:
    """``q_OI`` is int8 whatever the bits; ``scale`` ``(O, G)``, ``(O, 1)`` or ``(1, 1)``."""

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
        return -(-self.q_OI.numel() * self.bits // 8) + self.scale.numel() * self.scale.itemsize

    def held(self) -> IntWeight:
        """As a model holds it and a checkpoint keeps it, a scale for each row at least."""
        levels_OI = (self.q_OI.to(torch.int16) + (1 << self.bits - 1)).to(torch.uint8)
        rows, groups = len(levels_OI), self.scale.shape[1]
        return IntWeight.of_levels(levels_OI, self.scale.expand(rows, groups).contiguous(), self.bits)


def round_to_nearest(
    weight_OI: Tensor,
    bits: int,
    *,
    group_size: int | None = None,
    per_row: bool = True,
    dtype: torch.dtype = torch.float16,
) -> Quantized:
    """No weight is off by more than half a step. A row or group of zeros has scale 0 and stays zero. ``dtype`` is the
    scales'."""
    scale = step_sizes(weight_OI, bits, group_size=group_size, per_row=per_row, dtype=dtype)
    return Quantized(round_with(weight_OI, spread(scale.float(), weight_OI.shape[1]), bits), scale, bits)


def round_from_minimum(
    weight_OI: Tensor,
    bits: int,
    *,
    group_size: int,
    shrink_OG: Tensor | float = 1.0,
    dtype: torch.dtype = torch.float16,
) -> IntWeight:
    """All levels between each group's least and largest weight (and zero, which has a level of its own). Both ends may
    be brought nearer by ``shrink``; what lies beyond them is cut off."""
    groups = weight_OI.float().unflatten(1, (-1, group_size))
    low, high = groups.amin(2).clamp(max=0) * shrink_OG, groups.amax(2).clamp(min=0) * shrink_OG
    top = (1 << bits) - 1
    scale = _rounded_up((high - low) / top, dtype)
    inverse = torch.where(scale == 0, 0, 1 / scale.float())
    zero = (-low * inverse).round().clamp(0, top)
    levels = ((groups * inverse.unsqueeze(2)).round() + zero.unsqueeze(2)).clamp(0, top)
    return IntWeight.of_levels(levels.flatten(1).to(torch.uint8), scale, bits, zero.to(torch.uint8))


def step_sizes(
    weight_OI: Tensor,
    bits: int,
    *,
    group_size: int | None = None,
    per_row: bool = True,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """``max|w| / (2^(b-1) - 1)`` of each group, row or the whole tensor, in ``dtype``.

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
    return _rounded_up(largest / largest_level(bits), dtype)


def _rounded_up(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Up, so that the largest weight is not out of reach, however small it is."""
    rounded = scale.to(dtype)
    if dtype.itemsize > 2:
        return rounded
    return torch.where(rounded.float() < scale, (rounded.view(torch.int16) + 1).view(dtype), rounded)


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
