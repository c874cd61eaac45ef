"""Keys and values in fewer bits: INT8, INT4 and FP8, and KIVI's layout for a whole cache (arXiv 2402.02750).

Integers are asymmetric: the numbers that share a scale lie between their minimum, the *zero*, and ``zero + levels *
scale``. Both are kept in float16, the zero rounded down and the scale up, so that all numbers stay inside and none is
further from its code than half a scale. FP8 keeps a scale only; its codes are floating-point numbers themselves.

Which numbers share a scale matters more than the format. Keys have a few channels that are large in every token: a
scale per channel (over tokens) leaves the others alone. Values have none, and a scale per token lets each be encoded
when it comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KVFormat = Literal["int8", "int4", "fp8_e4m3", "fp8_e5m2"]

_LEVELS = {"int8": 255, "int4": 15}
_FLOAT8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


@dataclass(frozen=True)
class Quantized:
    """Numbers in codes. INT4 has two to a byte, neighbours in the last dimension, the first in the low half."""

    format: KVFormat
    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        codes = self.codes
        if self.format == "int4":
            codes = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
        numbers = codes.float() * self.scale.float()
        return (numbers if self.zero is None else numbers + self.zero.float()).to(dtype)

    @property
    def num_bytes(self) -> int:
        return sum(x.nbytes for x in (self.codes, self.scale, self.zero) if x is not None)


def quantize(x: Tensor, format: KVFormat, *, dim: int = -1) -> Quantized:
    """Encode numbers within float16's range; all along ``dim`` share a scale. INT4 needs an even last dimension.

    The error is at most ``scale / 2`` for integers. FP8's is at most a sixteenth (E4M3) or an eighth (E5M2) of the
    number itself, or half of the smallest code where the number is smaller than FP8's normal ones.
    """
    if format == "int4" and x.shape[-1] % 2:
        raise ValueError(f"INT4 packs pairs, and the last dimension is {x.shape[-1]}")
    x = x.float()
    if format in _FLOAT8:
        largest = torch.finfo(_FLOAT8[format]).max
        scale = _up_to_half(x.abs().amax(dim, keepdim=True) / largest)
        return Quantized(format, _divide(x, scale).clamp(-largest, largest).to(_FLOAT8[format]), scale, None)
    levels = _LEVELS[format]
    zero = -_up_to_half(-x.amin(dim, keepdim=True))
    scale = _up_to_half((x.amax(dim, keepdim=True) - zero.float()) / levels)
    codes = _divide(x - zero.float(), scale).round().clamp(0, levels).to(torch.uint8)
    if format == "int4":
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return Quantized(format, codes, scale, zero)


def _up_to_half(x: Tensor) -> Tensor:
    """The smallest float16 that is not below."""
    half = x.half()
    return torch.where(half.float() < x, torch.nextafter(half, torch.full_like(half, torch.inf)), half)


def _divide(x: Tensor, scale: Tensor) -> Tensor:
    return x / scale.float().masked_fill(scale == 0, 1)


class KiviCache:
    """One layer's keys and values of one sequence: old ones in codes, the last ``residual`` as they came.

    As soon as ``group`` tokens stand before the last ``residual``, they are encoded together: keys with one scale per
    channel and group, values with one per token and head. Reading decodes; what leaves the accelerator's memory in a
    fused kernel is the codes.
    """

    def __init__(self, format: KVFormat = "int4", *, group: int = 32, residual: int = 128) -> None:
        self.format: KVFormat = format
        self.group, self.residual = group, residual
        self._encoded: list[tuple[Quantized, Quantized]] = []
        self._recent: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return self.num_encoded + (0 if self._recent is None else len(self._recent[0]))

    @property
    def num_encoded(self) -> int:
        return len(self._encoded) * self.group

    def append(self, k_TKd: Tensor, v_TKe: Tensor) -> None:
        if self._recent is not None:
            k_TKd, v_TKe = torch.cat((self._recent[0], k_TKd)), torch.cat((self._recent[1], v_TKe))
        while len(k_TKd) >= self.residual + self.group:
            keys, values = quantize(k_TKd[: self.group], self.format, dim=0), quantize(v_TKe[: self.group], self.format)
            self._encoded.append((keys, values))
            k_TKd, v_TKe = k_TKd[self.group :], v_TKe[self.group :]
        # A copy, so that the tokens just encoded are let go.
        self._recent = k_TKd.clone(), v_TKe.clone()

    def read(self) -> tuple[Tensor, Tensor]:
        """All keys ``(L, K, d)`` and values ``(L, K, e)``, in the dtype they came in."""
        if self._recent is None:
            raise ValueError("nothing has been appended yet")
        recent_k, recent_v = self._recent
        keys = [keys.dequantize(recent_k.dtype) for keys, _ in self._encoded]
        values = [values.dequantize(recent_v.dtype) for _, values in self._encoded]
        return torch.cat((*keys, recent_k)), torch.cat((*values, recent_v))

    def truncate(self, length: int) -> None:
        """Forget what came after the first ``length`` tokens, which must not be in codes yet."""
        if not self.num_encoded <= length <= len(self):
            raise ValueError(f"cannot go back to {length} of {len(self)} tokens: {self.num_encoded} are in codes")
        if self._recent is not None:
            keep = length - self.num_encoded
            self._recent = self._recent[0][:keep], self._recent[1][:keep]

    @property
    def num_bytes(self) -> int:
        recent = 0 if self._recent is None else sum(x.nbytes for x in self._recent)
        return recent + sum(part.num_bytes for pair in self._encoded for part in pair)
