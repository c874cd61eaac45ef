"""A quantised weight packed for the kernels, which round activations to 8 bits as well.

Both factors of a product are then small integers, which a processor multiplies several times as fast as floats, and
each weight is read once in its few bits. The weights are exactly those of the file; what is approximated are the
activations, each token by itself in blocks of 32 with a scale of their own (llama.cpp computes alike). The exact way is
`BlockWeight`; `docs/engine.md` says what the difference is in perplexity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wootz import kernels
from wootz.core.gguf import GGML_TYPES
from wootz.kernels.packing import PackedMatrix, Parts, pack, packed_bytes
from wootz.models.block_weight import BlockWeight
from wootz.models.dequantize import fields, half, six_bit_pairs
from wootz.models.quantized_weight import QuantizedWeight


@dataclass(frozen=True)
class PackedWeight:
    """Rows of one `Linear`: ``matrices`` one below the other (query, key, value; gate, up), in any formats."""

    matrices: tuple[PackedMatrix, ...]

    @property
    def format(self) -> str:
        return "+".join(dict.fromkeys(matrix.layout for matrix in self.matrices))

    def multiply(self, x: Tensor) -> Tensor:
        """``x W^T`` in float32, for ``x`` of shape ``(…, columns)``."""
        x_TC = x.reshape(-1, x.shape[-1])
        outputs = [kernels.packed_linear(x_TC, matrix) for matrix in self.matrices]
        y_TR = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return y_TR.view(*x.shape[:-1], y_TR.shape[1])

    @staticmethod
    def size(weights: Sequence[Packable]) -> int:
        """Bytes that `of` needs."""
        return sum(packed_bytes(layout_of(weight) or "", *weight.shape) for weight in weights)

    @staticmethod
    def of(weights: Sequence[Packable], out: Tensor) -> PackedWeight:
        """The same weights, packed into ``out``, uint8, of `size` bytes. All must have a layout (`layout_of`)."""
        matrices, start = [], 0
        for weight in weights:
            size = PackedWeight.size([weight])
            parts = take_apart(weight) if isinstance(weight, BlockWeight) else weight.parts()
            matrices.append(pack(parts, out[start : start + size]))
            start += size
        return PackedWeight(tuple(matrices))


Packable = BlockWeight | QuantizedWeight


def layout_of(weight: Packable) -> str | None:
    """How it would be packed; None where it can't be."""
    if isinstance(weight, BlockWeight):
        return GGUF_PARTS[weight.format][0] if weight.format in GGUF_PARTS else None
    return weight.packed_layout


def take_apart(weight: BlockWeight) -> Parts:
    """GGUF blocks as integers, scales and minima."""
    layout, split = GGUF_PARTS[weight.format]
    rows, columns = weight.shape
    _, block_bytes = _SIZES[weight.format]
    q, scale, minimum = split(weight.data.reshape(-1, block_bytes))
    numbers_min = None if minimum is None else minimum.reshape(rows, -1)
    return Parts(layout, q.reshape(rows, columns), scale.reshape(rows, -1), numbers_min)


_Split = Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]


def _q4_0(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    d, q = blocks.split((2, 16), 1)
    return fields(q, 4, 16), half(d), None


def _q4_1(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    d, m, q = blocks.split((2, 2, 16), 1)
    return fields(q, 4, 16), half(d), half(m)


def _q5_0(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    d, high, low = blocks.split((2, 4, 16), 1)
    return fields(low, 4, 16) | fields(high, 1, 1) << 4, half(d), None


def _q5_1(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    d, m, high, low = blocks.split((2, 2, 4, 16), 1)
    return fields(low, 4, 16) | fields(high, 1, 1) << 4, half(d), half(m)


def _q8_0(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    d, q = blocks.split((2, 32), 1)
    return q.contiguous().view(torch.int8), half(d), None


def _q4_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    d, m, scales, q = blocks.split((2, 2, 12, 128), 1)
    scale, minimum = six_bit_pairs(scales)
    return fields(q, 4, 32), half(d) * scale, -half(m) * minimum


def _q5_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    d, m, scales, high, low = blocks.split((2, 2, 12, 32, 128), 1)
    scale, minimum = six_bit_pairs(scales)
    return fields(low, 4, 32) | fields(high, 1, 32) << 4, half(d) * scale, -half(m) * minimum


def _q6_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    low, high, scales, d = blocks.split((128, 64, 16, 2), 1)
    q = (fields(low, 4, 64) | fields(high, 2, 32) << 4).to(torch.int8) - 32
    return q, half(d) * scales.contiguous().view(torch.int8).float(), None


GGUF_PARTS: dict[str, tuple[str, _Split]] = {
    "Q4_0": ("U4_OFFSET", _q4_0),
    "Q4_1": ("U4_MIN", _q4_1),
    "Q5_0": ("U5_OFFSET", _q5_0),
    "Q5_1": ("U5_MIN", _q5_1),
    "Q8_0": ("S8", _q8_0),
    "Q4_K": ("U4_MIN_WIDE", _q4_k),
    "Q5_K": ("U5_MIN_WIDE", _q5_k),
    "Q6_K": ("S6_WIDE", _q6_k),
}
"""GGUF formats that can be packed: as which layout, and how they are taken apart."""

_SIZES = {name: (weights, num_bytes) for name, weights, num_bytes in GGML_TYPES.values()}
