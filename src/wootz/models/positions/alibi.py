"""ALiBi (arXiv 2108.12409): a key's score falls in proportion to its distance, faster in some heads than in others.

Nothing is learned and nothing ends, so a model may run on past its training length. What is far is still seen, but at a
price: a head with slope m takes ``exp(-m * distance)`` off a key's weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ALiBiConfig:
    max_bias: float = 8.0
    """The slopes end at ``2 ** -max_bias`` (MPT's ``alibi_bias_max``)."""

    def build(self, num_heads: int, head_dim: int) -> nn.Module:
        return ALiBi(slopes(num_heads, self.max_bias))


def slopes(num_heads: int, max_bias: float = 8.0) -> tuple[float, ...]:
    """Of each head: ``2 ** (-max_bias * h / H)`` for h = 1 … H, if H is a power of two. If not, those of the next lower
    power of two, followed by every other one of twice as many heads (the authors' rule; BLOOM's and MPT's too)."""
    power = 2 ** math.floor(math.log2(num_heads))
    own = [2 ** (-max_bias * head / power) for head in range(1, power + 1)]
    finer = [2 ** (-max_bias * head / (2 * power)) for head in range(1, 2 * power + 1, 2)]
    return tuple(own + finer[: num_heads - power])


class ALiBi(nn.Module):
    """``-slope * |distance|``, the same for all queries and keys."""

    def __init__(self, slopes_H: tuple[float, ...]) -> None:
        super().__init__()
        # Neither a parameter nor a buffer: it stays float32, and models are built on the meta device.
        self.slopes_H11 = torch.tensor(slopes_H, device="cpu")[:, None, None]

    def forward(self, q_HQd: Tensor, k_KLd: Tensor, relative_QL: Tensor) -> Tensor:
        self.slopes_H11 = self.slopes_H11.to(relative_QL.device)
        return -self.slopes_H11 * relative_QL.abs().unsqueeze(-3)
