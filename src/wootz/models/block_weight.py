"""A weight that stays as its GGUF file has it: rows of quantised blocks.

At a few tokens per step, reading the weights is all the time there is, so they are read as small as they are and
turned into floats on the way (`wootz.kernels`). With many tokens the product itself decides, and PyTorch's is the
fastest on a weight that was turned into floats first. Both compute the same thing: float32 throughout, and no
activation is ever quantised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz import kernels

MOST_KERNEL_TOKENS = 32
"""From here on the kernel's product is slower than dequantising first (measured; see ``docs/benchmarks.md``)."""


@dataclass(frozen=True)
class BlockWeight:
    """``data`` is uint8, ``(rows, bytes per row)``; ``shape`` that of the weight it stands for."""

    data: Tensor
    format: str
    shape: tuple[int, int]

    def multiply(self, x: Tensor) -> Tensor:
        """``x W^T`` in float32, for ``x`` of shape ``(…, columns)``."""
        x_TC = x.reshape(-1, self.shape[1])
        if len(x_TC) <= MOST_KERNEL_TOKENS:
            y_TR = kernels.linear(x_TC, self.data, self.format)
        else:
            y_TR = F.linear(x_TC, kernels.dequantize(self.data, self.format, self.shape[1]))
        return y_TR.view(*x.shape[:-1], self.shape[0])

    @staticmethod
    def stack(weights: list[BlockWeight]) -> BlockWeight | None:
        """One below the other; None if they are not of one format, or of one that the kernels do not know."""
        if len({weight.format for weight in weights}) > 1 or weights[0].format not in kernels.FORMATS:
            return None
        rows = sum(weight.shape[0] for weight in weights)
        return BlockWeight(
            torch.cat([weight.data for weight in weights]), weights[0].format, (rows, weights[0].shape[1])
        )
