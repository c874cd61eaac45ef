"""Sinusoidal positions (arXiv 1706.03762): fixed sines and cosines, added to the embeddings.

``PE(p, 2i) = sin(p / 10000 ** (2i / D))`` and ``PE(p, 2i + 1)`` the cosine of the same. A shift by k is a rotation of
each pair by an angle that depends on k alone, whatever p is. There is no last position, and positions may be fractions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SinusoidalConfig:
    theta: float = 10_000.0

    def build(self, hidden_size: int) -> nn.Module:
        if hidden_size % 2:
            raise ValueError(f"sinusoidal positions come in pairs of dimensions, and {hidden_size} is not even")
        return Sinusoidal(self)


class Sinusoidal(nn.Module):
    def __init__(self, config: SinusoidalConfig) -> None:
        super().__init__()
        self.theta = config.theta

    def forward(self, x_TD: Tensor, positions_T: Tensor) -> Tensor:
        return x_TD + sinusoids(positions_T, x_TD.shape[-1], self.theta).to(x_TD.dtype)


def sinusoids(positions_T: Tensor, dim: int, theta: float = 10_000.0) -> Tensor:
    """``(T, dim)`` in float32."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions_T.device) / dim
    angles = torch.outer(positions_T.float(), theta**-exponents)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)
