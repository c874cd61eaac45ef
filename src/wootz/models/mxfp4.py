"""MXFP4, in which gpt-oss is published: blocks of 32 numbers of 4 bits under one power of two.

OCP Microscaling Formats 1.0: a number is E2M1 (sign, two bits of exponent, one of mantissa), a scale is a biased
exponent (E8M0). Two numbers share a byte, the first in its low half.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""By the low three bits; the fourth is the sign."""


BLOCKS, SCALES = "_blocks", "_scales"
"""What the names of a weight's two halves end with."""


def dequantize_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Bytes ``(…, G, 16)`` and their scales ``(…, G)``, both uint8, as float32 ``(…, 32 G)``. Exact."""
    values = torch.tensor([*MAGNITUDES, *(-magnitude for magnitude in MAGNITUDES)], device=blocks.device)
    codes = torch.stack((blocks & 0xF, blocks >> 4), -1).flatten(-2)
    exponents = scales.to(torch.int32).unsqueeze(-1) - 127
    return torch.ldexp(values[codes.to(torch.int32)], exponents).flatten(-2)
