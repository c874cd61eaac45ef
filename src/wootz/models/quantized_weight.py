"""Weights that stay quantised in memory: integers in groups, and eight-bit floats.

A `Linear` that holds one of these (`Linear.hold_blocks`) computes with it. The product itself is PyTorch's, on the
weight turned into floats on the way: right on every device, which is what it is for. Where the CPU kernels have a block
format that says exactly the same (`for_kernels`), they take over, and the weight is never turned into floats whole. On
a GPU `wootz.models.gpu_products` knows faster ways for some. What happens to the inputs is in `rounded_inputs`.

Legend: O outputs, I inputs, G groups of a row, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.kernels.packing import COLUMNS, Parts
from wootz.models import gpu_products
from wootz.models.block_weight import BlockWeight

FLOAT8 = torch.float8_e4m3fn
LARGEST_FLOAT8 = torch.finfo(FLOAT8).max  # 448


class Multiplies(Protocol):
    """All that `Linear` asks of a weight that it holds. `BlockWeight` and `PackedWeight` are two more."""

    @property
    def format(self) -> str:
        """A few words for people."""
        ...

    def multiply(self, x: Tensor) -> Tensor:
        """``x W^T`` for ``x`` of shape ``(…, I)``."""
        ...


class QuantizedWeight(Multiplies, Protocol):
    """What checkpoints hold."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def num_bytes(self) -> int:
        """Packed, with scales and all."""
        ...

    def dequantize(self) -> Tensor:
        """The float32 weight ``(O, I)`` that this stands for."""
        ...

    def to(self, device: torch.device) -> QuantizedWeight: ...

    def rows(self, start: int, stop: int) -> QuantizedWeight: ...

    def beside(self, others: Sequence[QuantizedWeight]) -> QuantizedWeight | None:
        """This and those below each other in one weight; None if they are too different for that."""
        ...

    def for_kernels(self) -> Multiplies | None:
        """The same numbers in a form that the CPU kernels compute with, if there is one."""
        ...

    @property
    def packed_layout(self) -> str | None:
        """How the kernels that round activations (`PackedWeight`) lay this weight out, if they can hold it."""
        ...

    def parts(self) -> Parts:
        """This weight taken apart, to be packed as ``packed_layout``."""
        ...


class _ByDequantizing:
    """The product that is always right."""

    def multiply(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantize().to(x.dtype))

    def dequantize(self) -> Tensor:
        raise NotImplementedError

    @property
    def packed_layout(self) -> str | None:
        return None

    def parts(self) -> Parts:
        raise NotImplementedError


@dataclass(frozen=True)
class IntWeight(_ByDequantizing):
    """``w = scale * (level - zero)`` with levels of up to 8 bits.

    ``data`` is uint8: up to 4 bits, two levels to a byte ``(O, I / 2)``, the first in the low half; else ``(O, I)``.
    ``scale`` is ``(O, G)``; ``zero`` uint8 ``(O, G)``, or None for the middle, ``2^(bits - 1)``. A row's columns lie in
    G groups one after the other, or column i in group ``group_of_I[i]`` (GPTQ's activation order).
    """

    data: Tensor
    scale: Tensor
    bits: int
    zero: Tensor | None = None
    group_of_I: Tensor | None = None

    @classmethod
    def of_levels(
        cls, levels_OI: Tensor, scale: Tensor, bits: int, zero: Tensor | None = None, group_of_I: Tensor | None = None
    ) -> IntWeight:
        """From unpacked levels, ``[0, 2^bits)`` in uint8."""
        if bits <= 4:
            levels_OI = levels_OI[:, ::2] | levels_OI[:, 1::2] << 4
        return cls(levels_OI.contiguous(), scale, bits, zero, group_of_I)

    def multiply(self, x: Tensor) -> Tensor:
        y = gpu_products.times_int4(x, self)
        return super().multiply(x) if y is None else y

    @property
    def levels_OI(self) -> Tensor:
        if self.bits > 4:
            return self.data
        return torch.stack((self.data & 15, self.data >> 4), -1).flatten(1)

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.data.shape
        return rows, columns * (2 if self.bits <= 4 else 1)

    @property
    def group_size(self) -> int:
        return self.shape[1] // self.scale.shape[1]

    @property
    def format(self) -> str:
        by = "row" if self.scale.shape[1] == 1 else f"group of {self.group_size}"
        return f"int{self.bits} by {by}"

    @property
    def num_bytes(self) -> int:
        rows, columns = self.shape
        zeros = 0 if self.zero is None else self.zero.numel() * self.bits // 8
        return rows * columns * self.bits // 8 + self.scale.numel() * self.scale.itemsize + zeros

    def dequantize(self) -> Tensor:
        zero = 1 << self.bits - 1 if self.zero is None else self._spread(self.zero)
        return self._spread(self.scale.float()) * (self.levels_OI.float() - zero)

    def to(self, device: torch.device) -> IntWeight:
        return replace(
            self, **{name: tensor.to(device) for name, tensor in vars(self).items() if isinstance(tensor, Tensor)}
        )

    def rows(self, start: int, stop: int) -> IntWeight:
        zero = None if self.zero is None else self.zero[start:stop]
        return replace(self, data=self.data[start:stop], scale=self.scale[start:stop], zero=zero)

    def beside(self, others: Sequence[QuantizedWeight]) -> IntWeight | None:
        whole = [self, *(other for other in others if isinstance(other, IntWeight) and self._is_like(other))]
        if len(whole) <= len(others):
            return None
        zeros = [weight.zero for weight in whole if weight.zero is not None]
        return replace(
            self,
            data=torch.cat([weight.data for weight in whole]),
            scale=torch.cat([weight.scale for weight in whole]),
            zero=torch.cat(zeros) if zeros else None,
        )

    def _is_like(self, other: IntWeight) -> bool:
        mine, theirs = self.group_of_I, other.group_of_I
        one_order = mine is theirs or (mine is not None and theirs is not None and torch.equal(mine, theirs))
        return one_order and (self.bits, self.scale.shape[1], self.scale.dtype, self.zero is None) == (
            other.bits,
            other.scale.shape[1],
            other.scale.dtype,
            other.zero is None,
        )

    @property
    def _has_blocks(self) -> bool:
        """Whether 32 columns have one scale."""
        return self.group_of_I is None and self.group_size % COLUMNS == 0

    @property
    def _half_is_exact(self) -> bool:
        return torch.equal(self.scale.half().float(), self.scale.float())

    @property
    def packed_layout(self) -> str | None:
        if not self._has_blocks or (self.bits > 4 and self.zero is not None):
            return None
        if self.bits > 4:
            return "S8" if self._half_is_exact else "S8_WIDE"
        return "U4_OFFSET" if self.bits == 4 and self.zero is None and self._half_is_exact else "U4_MIN_WIDE"

    def parts(self) -> Parts:
        layout, middle = self.packed_layout, 1 << self.bits - 1
        assert layout is not None
        scale = self.scale.float().repeat_interleave(self.group_size // COLUMNS, 1)
        if self.bits > 4:
            return Parts(layout, (self.data.to(torch.int16) - middle).to(torch.int8), scale)
        if layout == "U4_OFFSET":
            return Parts(layout, self.levels_OI, scale)
        zero = middle if self.zero is None else self.zero.repeat_interleave(self.group_size // COLUMNS, 1)
        return Parts(layout, self.levels_OI, scale, -scale * zero)

    def for_kernels(self) -> BlockWeight | None:
        """Blocks of 32 with a float16 scale each: Q4_0 for four bits around the middle, Q8_0 for the rest."""
        rows, columns = self.shape
        if not (self._has_blocks and self._half_is_exact):
            return None
        half = self.scale.half()
        d = half.repeat_interleave(self.group_size // COLUMNS, 1).unsqueeze(2).view(torch.uint8)
        blocks = self.levels_OI.view(rows, -1, COLUMNS)
        if self.bits == 4 and self.zero is None:
            packed, format = blocks[..., :16] | blocks[..., 16:] << 4, "Q4_0"
        else:
            zero = 1 << self.bits - 1 if self.zero is None else self._spread(self.zero).view(blocks.shape)
            signed = blocks.to(torch.int16) - zero
            if signed.amin() < -128 or signed.amax() > 127:
                return None
            packed, format = signed.to(torch.int8).view(torch.uint8), "Q8_0"
        return BlockWeight(torch.cat((d, packed), 2).flatten(1).contiguous(), format, (rows, columns))

    def _spread(self, by_group: Tensor) -> Tensor:
        """Each column's, ``(O, I)``."""
        if self.group_of_I is not None:
            return by_group[:, self.group_of_I]
        return by_group.repeat_interleave(self.group_size, 1)


@dataclass(frozen=True)
class Float8Weight(_ByDequantizing):
    """``w = scale * data`` with data in E4M3, ``(O, I)``; a scale for each row ``(O, 1)``, or for each block of
    ``block`` rows and columns."""

    data: Tensor
    scale: Tensor
    block: tuple[int, int] | None = None
    format = "float8"

    def multiply(self, x: Tensor) -> Tensor:
        y = gpu_products.times_float8(x, self)
        return super().multiply(x) if y is None else y

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.data.shape
        return rows, columns

    @property
    def num_bytes(self) -> int:
        return self.data.numel() + self.scale.numel() * self.scale.itemsize

    def dequantize(self) -> Tensor:
        scale, (rows, columns) = self.scale.float(), self.shape
        if self.block is not None:
            high, wide = self.block
            scale = scale.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
        return self.data.float() * scale

    def to(self, device: torch.device) -> Float8Weight:
        return replace(self, data=self.data.to(device), scale=self.scale.to(device))

    def rows(self, start: int, stop: int) -> Float8Weight:
        if self.block is not None:
            raise ValueError("blocks of rows are not cut")
        return replace(self, data=self.data[start:stop], scale=self.scale[start:stop])

    def beside(self, others: Sequence[QuantizedWeight]) -> Float8Weight | None:
        whole = [self, *(other for other in others if isinstance(other, Float8Weight))]
        if len(whole) <= len(others) or any(weight.block is not None for weight in whole):
            return None
        return Float8Weight(
            torch.cat([weight.data.view(torch.uint8) for weight in whole]).view(FLOAT8),
            torch.cat([weight.scale for weight in whole]),
        )

    def for_kernels(self) -> None:
        return None


@dataclass(frozen=True)
class Stacked:
    """Weights below each other that are too different to be one."""

    parts: tuple[Multiplies, ...]

    @property
    def format(self) -> str:
        return "; ".join(dict.fromkeys(part.format for part in self.parts))

    def multiply(self, x: Tensor) -> Tensor:
        return torch.cat([part.multiply(x) for part in self.parts], -1)


def stack(weights: Sequence[QuantizedWeight], *, on_kernels: bool) -> Multiplies:
    """One below the other; ``on_kernels`` as the CPU kernels compute it, as far as they can."""
    together = weights[0] if len(weights) == 1 else weights[0].beside(weights[1:])
    parts = weights if together is None else (together,)
    ready = tuple((weight.for_kernels() if on_kernels else None) or weight for weight in parts)
    return ready[0] if len(ready) == 1 else Stacked(ready)
