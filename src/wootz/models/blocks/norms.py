"""RMSNorm and LayerNorm. Both take their statistics in float32 at least, whatever the dtype of their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.kernels import training


@dataclass(frozen=True)
class NormConfig:
    """Which norm, for every place of a model that has one."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6
    """Keep it at 1e-5 or above for float16, in which the square of a small activation is zero."""
    offset: float = 0.0
    """The scale is ``offset + weight``: Gemma keeps its weights around zero."""
    bias: bool = True
    """Of a LayerNorm; an RMSNorm has none."""

    def build(self, size: int) -> nn.Module:
        if self.kind == "rms":
            return RMSNorm(size, self.eps, self.offset)
        return LayerNorm(size, self.eps, bias=self.bias)


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension, then scale (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + self.offset if self.offset else self.weight
        if training.serves(x, weight):
            return training.rms_norm(x, weight, self.eps)
        return F.rms_norm(x, weight.shape, weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """Subtract the mean, divide by the standard deviation, scale and shift (arXiv 1607.06450)."""

    def __init__(self, size: int, eps: float, *, bias: bool = True) -> None:
        super().__init__(size, eps, bias=bias)
