"""What the blocks of one layer hold: keys and values as they are, in 16 bits, or in codes of eight or four.

`KVStore.write` puts tokens into their slots and returns them *as they will be read*. Attention uses those, so a token
looks the same in the step that computes it and in every later one, and an answer does not depend on how its prompt was
cut or who shared its blocks. `gather` brings whole blocks back in the dtype that the model computes in.

Codes (`wootz.models.attention.kv_quantization`) have a scale for each token and head, so a token is encoded when it
comes and a block can be written, shared and copied like any other. In four bits, one large channel would take all
sixteen levels for itself; so about one channel in a hundred, the farthest from the mean of its token and head, stays in
float16 beside the codes (KVQuant, arXiv 2401.18079).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wootz.models.attention.kv_quantization import Quantized, quantize

CacheFormat = torch.dtype | Literal["int8", "int4", "fp8"]
"""How numbers are kept. "fp8" is E4M3."""

OUTLIER_SHARE = 0.01


@dataclass(frozen=True)
class KVStore:
    """One layer's blocks, as they lie in memory, and the ``dtype`` that they are read in."""

    parts: tuple[Tensor, ...]
    """What `encode` makes of tokens, by block and place: ``(num_blocks, block_size, …)`` each."""
    format: CacheFormat
    dtype: torch.dtype

    @property
    def dense(self) -> Tensor | None:
        """``(num_blocks, block_size, *shape)`` where numbers are kept as such, for kernels that read them in place."""
        return self.parts[0] if isinstance(self.format, torch.dtype) else None

    def write(self, slots_T: Tensor, x_T: Tensor) -> Tensor:
        """Put tokens, ``(T, *shape)``, into these places; returns them as `gather` will give them back."""
        encoded = encode(x_T, self.format)
        for part, new in zip(self.parts, encoded, strict=True):
            part.flatten(0, 1).index_copy_(0, slots_T, new)
        return decode(encoded, self.format, self.dtype)

    def gather(self, blocks: Tensor) -> Tensor:
        """All tokens of these blocks, end to end: ``(len(blocks) * block_size, *shape)``."""
        parts = [part.index_select(0, blocks).flatten(0, 1) for part in self.parts]
        return decode(parts, self.format, self.dtype)

    def read(self, slots: list[int]) -> Tensor:
        """Single tokens, ``(len(slots), *shape)``."""
        return decode([part.flatten(0, 1)[slots] for part in self.parts], self.format, self.dtype)

    def copy(self, source: int, target: int) -> None:
        """A block."""
        for part in self.parts:
            part[target] = part[source]

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy single tokens, all at once."""
        for part in self.parts:
            tokens = part.flatten(0, 1)
            tokens[targets] = tokens[sources]


def allocate(
    shape: tuple[int, ...], num_blocks: int, block_size: int, format: CacheFormat, device: torch.device
) -> Tensor | tuple[Tensor, ...]:
    """Blocks of tokens of this ``shape``: ``(2, K, d)`` keys and values, or a latent's ``(d,)``. One tensor
    ``(num_blocks, block_size, *shape)`` where numbers are kept as they are, the parts of their codes otherwise."""
    token = encode(torch.zeros(1, *shape), format)
    parts = tuple(_zeros((num_blocks, block_size, *part.shape[1:]), part.dtype, device) for part in token)
    return parts[0] if isinstance(format, torch.dtype) else parts


def encode(x: Tensor, format: CacheFormat) -> list[Tensor]:
    """What is kept of ``(T, …, d)``: tensors that begin with T."""
    if isinstance(format, torch.dtype):
        return [x.to(format)]
    if format == "fp8":
        coded = quantize(x, "fp8_e4m3")
        return [coded.codes.view(torch.uint8), coded.scale]  # Few operations know float8.
    if format == "int8":
        coded = quantize(x, "int8")
        return [coded.codes, coded.scale, *_present(coded.zero)]
    x = x.float()
    dim = x.shape[-1]
    num_outliers = max(1, round(OUTLIER_SHARE * dim))
    places = (x - x.mean(-1, keepdim=True)).abs().topk(num_outliers).indices
    mean_of_others = x.scatter(-1, places, 0).sum(-1, keepdim=True) / (dim - num_outliers)
    coded = quantize(x.scatter(-1, places, mean_of_others.expand(places.shape)), "int4")
    kept_places = places.to(torch.uint8 if dim <= 256 else torch.int16)
    return [coded.codes, coded.scale, *_present(coded.zero), kept_places, x.gather(-1, places).half()]


def decode(parts: list[Tensor], format: CacheFormat, dtype: torch.dtype) -> Tensor:
    if isinstance(format, torch.dtype):
        return parts[0].to(dtype)
    if format == "fp8":
        return Quantized("fp8_e4m3", parts[0].view(torch.float8_e4m3fn), parts[1], None).dequantize(dtype)
    if format == "int8":
        return Quantized("int8", *parts).dequantize(dtype)
    codes, scale, zero, places, outliers = parts
    plain = Quantized("int4", codes, scale, zero).dequantize(dtype)
    return plain.scatter_(-1, places.long(), outliers.to(dtype))


def bytes_per_token(shape: tuple[int, ...], format: CacheFormat) -> int:
    return sum(part.nbytes for part in encode(torch.zeros(1, *shape), format))


def _present(zero: Tensor | None) -> list[Tensor]:
    return [] if zero is None else [zero]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Which no page of real memory backs until they are written: on a CPU by way of NumPy, as `torch.zeros` writes them
    at once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
