"""FLOATER (arXiv 2003.09229): positions that are computed one from the other, ``e_(p+1) = e_p + step * f(e_p, p)``.

The paper lets a neural ODE flow from place to place; these are its Euler steps. A few parameters serve any length, and
the price is that every pass walks from the first place to the last one it needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wootz.models.blocks.sizes import check_sizes
from wootz.models.linear import Linear


@dataclass(frozen=True)
class FloaterConfig:
    width: int = 64
    """Of f's hidden layer."""
    step: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, "width")

    def build(self, hidden_size: int) -> nn.Module:
        return Floater(self, hidden_size)


class Floater(nn.Module):
    """``x + e_p`` with ``f(e, p) = down(tanh(up(e) + p * clock))``."""

    def __init__(self, config: FloaterConfig, hidden_size: int) -> None:
        super().__init__()
        self.step = config.step
        self.start = nn.Parameter(torch.zeros(hidden_size))
        self.clock = nn.Parameter(torch.zeros(config.width))
        self.up = Linear(hidden_size, config.width, bias=True)
        self.down = Linear(config.width, hidden_size, bias=True)
        if not self.start.is_meta:
            nn.init.normal_(self.start, std=0.02)
            nn.init.normal_(self.clock, std=0.02)

    def forward(self, x_TD: Tensor, positions_T: Tensor) -> Tensor:
        return x_TD + self.walk(int(positions_T.max()) + 1)[positions_T].to(x_TD.dtype)

    def walk(self, num_positions: int) -> Tensor:
        """The vectors of the first places, ``(P, D)``."""
        places: list[Tensor] = [self.start]
        for place in range(num_positions - 1):
            hidden = torch.tanh(self.up(places[-1]) + place * self.clock)
            places.append(places[-1] + self.step * self.down(hidden))
        return torch.stack(places)
