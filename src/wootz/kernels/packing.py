"""Quantised weights laid out for the kernels: rows interleaved, so that one instruction works for several (`packed.h`).

Every format comes down to small integers with a scale, and perhaps a minimum, for each run of columns:
``weight = scale * (q + offset) + min``. What a GGUF block, an AWQ or a GPTQ checkpoint says is first taken apart into
`Parts`, and then packed.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from wootz import kernels

COLUMNS = 32
"""Columns of a packed block."""


@dataclass(frozen=True)
class Layout:
    """One of the `Packed` formats of ``kernels.h``."""

    number: int
    bits: int
    scale: torch.dtype
    has_min: bool = False
    scales: int = 1
    """Per block of 32 columns."""

    def block_bytes(self, lanes: int) -> int:
        return lanes * (COLUMNS * self.bits // 8 + (self.scales + self.has_min) * self.scale.itemsize)


LAYOUTS = {
    "U4_OFFSET": Layout(0, 4, torch.float16),
    "U4_MIN": Layout(1, 4, torch.float16, has_min=True),
    "U4_MIN_WIDE": Layout(2, 4, torch.float32, has_min=True),
    "U5_OFFSET": Layout(3, 8, torch.float16),
    "U5_MIN": Layout(4, 8, torch.float16, has_min=True),
    "U5_MIN_WIDE": Layout(5, 8, torch.float32, has_min=True),
    "S8": Layout(6, 8, torch.float16),
    "S8_WIDE": Layout(7, 8, torch.float32),
    "S6_WIDE": Layout(8, 8, torch.float32, scales=2),
}
"""U: unsigned, S: signed, with so many bits. OFFSET: 8 (4 bits) or 16 (5 bits) is taken off. WIDE: float32 scales."""


@dataclass(frozen=True)
class Parts:
    """A weight taken apart: ``q`` (R, C) int8 or uint8, ``scale`` and ``min`` (R, C / run)."""

    layout: str
    q_RC: Tensor
    scale_RB: Tensor
    min_RB: Tensor | None = None


@dataclass(frozen=True)
class PackedMatrix:
    """A packed weight of ``rows`` rows; the data holds a few more, of zeros, to fill its last tile."""

    layout: str
    data: Tensor
    rows: int
    columns: int

    @property
    def padded_rows(self) -> int:
        return padded(self.rows)

    def part(self, first: int, rows: int) -> PackedMatrix:
        """Some of the rows, which must begin and end at tiles."""
        row_bytes = self.data.numel() // self.padded_rows
        return PackedMatrix(self.layout, self.data[first * row_bytes : (first + rows) * row_bytes], rows, self.columns)


def padded(rows: int) -> int:
    multiple = 2 * kernels.lanes()
    return -(-rows // multiple) * multiple


def packed_bytes(layout: str, rows: int, columns: int) -> int:
    lanes = kernels.lanes()
    return padded(rows) // lanes * (columns // COLUMNS) * LAYOUTS[layout].block_bytes(lanes)


def pack(parts: Parts, out: Tensor | None = None) -> PackedMatrix:
    """Lay a weight out for the build of the kernels in use, into ``out`` if given (uint8, of `packed_bytes`)."""
    layout, (rows, columns) = LAYOUTS[parts.layout], parts.q_RC.shape
    lanes, more = kernels.lanes(), padded(rows) - rows

    def tiles(x_RN: Tensor) -> Tensor:
        if more:
            x_RN = torch.cat((x_RN, x_RN.new_zeros(more, x_RN.shape[1])))
        return x_RN.unflatten(0, (-1, lanes)).unflatten(2, (columns // COLUMNS, -1))  # (tile, lane, block, …)

    q = tiles(parts.q_RC.view(torch.uint8))
    if layout.bits == 4:
        low, high = q.unflatten(-1, (2, 4, 4)).unbind(-3)
        q = low | high << 4
    else:
        q = q.unflatten(-1, (8, 4))
    pieces = [q.permute(0, 2, 3, 1, 4).flatten(2)]  # (tile, block, v, lane, k)
    for numbers in (parts.scale_RB, parts.min_RB):
        if numbers is not None:
            pieces.append(tiles(numbers.to(layout.scale)).permute(0, 2, 3, 1).flatten(2).contiguous().view(torch.uint8))
    if out is None:
        out = torch.empty(packed_bytes(parts.layout, rows, columns), dtype=torch.uint8)
    torch.cat(pieces, dim=2, out=out.view(-1, columns // COLUMNS, layout.block_bytes(lanes)))
    return PackedMatrix(parts.layout, out, rows, columns)


def arena(num_bytes: int) -> Tensor:
    """Memory for all weights of a model, in large pages where the system has them, to be found without table walks."""
    memory = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
