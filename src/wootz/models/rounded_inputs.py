"""Weights whose inputs are quantised too (W8A8, FP8, LLM.int8()).

Inputs are rounded as the hardware would, and the product is computed in floats, so the numbers are those of a machine
with eight-bit products, without its speed (but for FP8 on a GPU that has them). A token is rounded by itself alone: an
answer does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wootz.kernels.packing import Parts
from wootz.models import gpu_products
from wootz.models.quantized_weight import FLOAT8, LARGEST_FLOAT8, Float8Weight, Multiplies, QuantizedWeight


@dataclass(frozen=True)
class RoundedInputs:
    """A weight whose inputs are rounded too: to ``dtype`` (int8 or E4M3), with a scale for each token, for each
    ``group`` of a token's channels, or with ``input_scale`` where calibration found one for all.

    Inputs above ``keep_above`` stay as they are (LLM.int8()). That paper takes whole columns, in which any token of the
    batch has such an outlier; here each token has its own, so that its company does not matter.
    """

    weight: QuantizedWeight
    dtype: torch.dtype
    input_scale: Tensor | None = None
    group: int | None = None
    keep_above: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape

    @property
    def format(self) -> str:
        to = "int8" if self.dtype == torch.int8 else "float8"
        return f"{self.weight.format}, inputs in {to}" + (f" up to {self.keep_above:g}" if self.keep_above else "")

    @property
    def num_bytes(self) -> int:
        return self.weight.num_bytes

    def multiply(self, x: Tensor) -> Tensor:
        if isinstance(self.weight, Float8Weight) and self.dtype == FLOAT8 and self.group == self.keep_above is None:
            y = gpu_products.rounded_times_float8(x, self.weight, self.input_scale)
            if y is not None:
                return y
        return self.weight.multiply(self.rounded(x)).to(x.dtype)

    def rounded(self, x: Tensor) -> Tensor:
        """What the eight-bit product sees of its inputs, and the outliers that go another way."""
        usual = x.float()
        if self.keep_above is not None:
            usual = usual.masked_fill(usual.abs() > self.keep_above, 0)
        if self.group is not None:
            usual = usual.unflatten(-1, (-1, self.group))
        largest = 127.0 if self.dtype == torch.int8 else LARGEST_FLOAT8
        scale = self.input_scale
        if scale is None:
            scale = (usual.abs().amax(-1, keepdim=True) / largest).clamp(min=torch.finfo(torch.float32).tiny)
        steps = (usual / scale).clamp(-largest, largest)
        steps = steps.round() if self.dtype == torch.int8 else steps.to(FLOAT8).float()
        rounded = (steps * scale).view(x.shape).to(x.dtype)
        return rounded if self.keep_above is None else torch.where(x.abs() > self.keep_above, x, rounded)

    def dequantize(self) -> Tensor:
        return self.weight.dequantize()

    def to(self, device: torch.device) -> RoundedInputs:
        scale = None if self.input_scale is None else self.input_scale.to(device)
        return replace(self, weight=self.weight.to(device), input_scale=scale)

    def rows(self, start: int, stop: int) -> RoundedInputs:
        return replace(self, weight=self.weight.rows(start, stop))

    def beside(self, others: Sequence[QuantizedWeight]) -> RoundedInputs | None:
        alike = [other.weight for other in others if isinstance(other, RoundedInputs) and self._is_like(other)]
        both = self.weight.beside(alike) if len(alike) == len(others) else None
        return None if both is None else replace(self, weight=both)

    def _is_like(self, other: RoundedInputs) -> bool:
        mine, theirs = self.input_scale, other.input_scale
        one_scale = mine is theirs or (mine is not None and theirs is not None and torch.equal(mine, theirs))
        return one_scale and all(getattr(self, n) == getattr(other, n) for n in ("dtype", "group", "keep_above"))

    def for_kernels(self) -> Multiplies | None:
        found = self.weight.for_kernels()
        return found and _RoundedForKernels(self, found)

    @property
    def packed_layout(self) -> str | None:
        """The kernels round a token in blocks of 32, finer than any checkpoint asks for."""
        eight_bits = self.dtype == torch.int8 and self.keep_above is None
        return self.weight.packed_layout if eight_bits else None

    def parts(self) -> Parts:
        return self.weight.parts()


@dataclass(frozen=True)
class _RoundedForKernels:
    inputs: RoundedInputs
    weight: Multiplies

    @property
    def format(self) -> str:
        return self.inputs.format

    def multiply(self, x: Tensor) -> Tensor:
        return self.weight.multiply(self.inputs.rounded(x))
