"""Learned positions that multiply: ``x * e_p``, number by number, from a table that starts around one. A curiosity, and
hard to train: a position scales what it should merely mark."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wootz.models.blocks.sizes import check_sizes
from wootz.models.positions.learned import check_positions


@dataclass(frozen=True)
class MultiplicativeConfig:
    num_positions: int

    def __post_init__(self) -> None:
        check_sizes(self, "num_positions")

    def build(self, hidden_size: int) -> nn.Module:
        return Multiplicative(self, hidden_size)


class Multiplicative(nn.Module):
    def __init__(self, config: MultiplicativeConfig, hidden_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.ones(config.num_positions, hidden_size), freeze=False)
        if not self.table.weight.is_meta:
            nn.init.normal_(self.table.weight, mean=1.0, std=0.1)

    def forward(self, x_TD: Tensor, positions_T: Tensor) -> Tensor:
        """Raises `BadRequestError` for a position that the table does not have."""
        check_positions(positions_T, len(self.table.weight))
        return x_TD * self.table(positions_T)
