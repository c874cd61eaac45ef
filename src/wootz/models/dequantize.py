"""GGML's block formats, turned back into float32.

A quantised row is a run of blocks; each block holds small integers q and the scale (and minimum) that they share:
``weight = d * q`` or ``d * q + m``. In the K formats a block is 256 weights in sub-blocks, whose own scales are
quantised too. Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h

Each function below takes blocks as bytes ``(N, bytes per block)`` and gives ``(N, weights per block)``; the order of
its floating-point operations is that of the reference, so results are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wootz.core.gguf import GGML_TYPES
from wootz.models.mxfp4 import dequantize_mxfp4

_CHUNK_BLOCKS = 1 << 14


def dequantize(data: Tensor, type_name: str) -> Tensor:
    """The float32 weights, flat, of a flat uint8 tensor that holds whole blocks of ``type_name`` (``"Q4_K"``, …)."""
    weights_per_block, bytes_per_block = _SIZES[type_name]
    blocks = data.view(-1, bytes_per_block)
    weights = torch.empty(len(blocks), weights_per_block)
    # In chunks, so that the intermediate integers stay in the processor's cache.
    for source, target in zip(blocks.split(_CHUNK_BLOCKS), weights.split(_CHUNK_BLOCKS), strict=True):
        target.copy_(_FORMATS[type_name](source))
    return weights.flatten()


def _f32(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float32)


def _f16(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float16)


def _bf16(blocks: Tensor) -> Tensor:
    return blocks.view(torch.bfloat16)


def _q4_0(blocks: Tensor) -> Tensor:
    d, q = blocks.split((2, 16), 1)
    return half(d) * (fields(q, 4, 16).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    d, m, q = blocks.split((2, 2, 16), 1)
    return half(d) * fields(q, 4, 16).float() + half(m)


def _q5_0(blocks: Tensor) -> Tensor:
    d, high, low = blocks.split((2, 4, 16), 1)
    return half(d) * ((fields(low, 4, 16) | fields(high, 1, 1) << 4).float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    d, m, high, low = blocks.split((2, 2, 4, 16), 1)
    return half(d) * (fields(low, 4, 16) | fields(high, 1, 1) << 4).float() + half(m)


def _q8_0(blocks: Tensor) -> Tensor:
    d, q = blocks.split((2, 32), 1)
    return half(d) * q.view(torch.int8).float()


def _q2_k(blocks: Tensor) -> Tensor:
    scales, q, d, m = blocks.split((16, 64, 2, 2), 1)
    return _sub_blocks(half(d) * (scales & 15).float(), fields(q, 2, 32), half(m) * (scales >> 4).float())


def _q3_k(blocks: Tensor) -> Tensor:
    high, low, scales, d = blocks.split((32, 64, 12, 2), 1)
    scales = fields(scales[:, :8], 4, 8) | fields(scales[:, 8:], 2, 4) << 4
    q = (fields(low, 2, 32) | fields(high, 1, 32) << 2).float() - 4
    return _sub_blocks(half(d) * (scales.float() - 32), q)


def _q4_k(blocks: Tensor) -> Tensor:
    d, m, scales, q = blocks.split((2, 2, 12, 128), 1)
    scale, minimum = six_bit_pairs(scales)
    return _sub_blocks(half(d) * scale, fields(q, 4, 32), half(m) * minimum)


def _q5_k(blocks: Tensor) -> Tensor:
    d, m, scales, high, low = blocks.split((2, 2, 12, 32, 128), 1)
    scale, minimum = six_bit_pairs(scales)
    return _sub_blocks(half(d) * scale, fields(low, 4, 32) | fields(high, 1, 32) << 4, half(m) * minimum)


def _q6_k(blocks: Tensor) -> Tensor:
    low, high, scales, d = blocks.split((128, 64, 16, 2), 1)
    q = (fields(low, 4, 64) | fields(high, 2, 32) << 4).float() - 32
    return _sub_blocks(half(d) * scales.view(torch.int8).float(), q)


def _mxfp4(blocks: Tensor) -> Tensor:
    scale, q = blocks.split((1, 16), 1)
    codes = fields(q, 4, 16)  # in a folder the two numbers of a byte are neighbours, here the first half lies low
    pairs = codes[:, ::2] | codes[:, 1::2] << 4
    return dequantize_mxfp4(pairs.unsqueeze(1), scale)


_FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "MXFP4": _mxfp4,
}

_SIZES = {name: (weights, num_bytes) for name, weights, num_bytes in GGML_TYPES.values()}


def half(scale: Tensor) -> Tensor:
    return scale.contiguous().view(torch.float16).float()


def fields(packed: Tensor, bits: int, run: int) -> Tensor:
    """Unpack fields of ``bits`` bits: of each ``run`` bytes the lowest fields first, then the next ones up."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8).unsqueeze(1)
    return (packed.unflatten(1, (-1, 1, run)) >> shifts & 2**bits - 1).flatten(1)


def six_bit_pairs(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minimums of 6 bits in 12 bytes; the last four of each have their top bits in the first."""
    scale, minimum, both = packed.split(4, 1)
    scales = torch.cat((scale & 63, both & 15 | scale >> 6 << 4), 1)
    minimums = torch.cat((minimum & 63, both >> 4 | minimum >> 6 << 4), 1)
    return scales.float(), minimums.float()


def _sub_blocks(scale: Tensor, q: Tensor, minimum: Tensor | None = None) -> Tensor:
    """``scale * q - minimum`` where scale and minimum ``(N, sub-blocks)`` hold for equal runs of q ``(N, weights)``."""
    weights = scale.unsqueeze(2) * q.float().unflatten(1, (scale.shape[1], -1))
    return (weights if minimum is None else weights - minimum.unsqueeze(2)).flatten(1)
