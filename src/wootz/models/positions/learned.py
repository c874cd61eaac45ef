"""Learned absolute positions (BERT, GPT-2): one vector per place, added to the token's embedding.

There is nothing to read beyond the table's end. PyTorch would say so with an index error deep in a kernel (which on a
GPU ends the process), so a position is checked before it is looked up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wootz.core.errors import BadRequestError
from wootz.models.blocks.sizes import check_sizes


@dataclass(frozen=True)
class LearnedConfig:
    num_positions: int
    """How many places a text may have."""
    offset: int = 0
    """The row of the first place: RoBERTa and OPT keep 2 rows in front that no text uses."""

    def __post_init__(self) -> None:
        check_sizes(self, "num_positions")

    def build(self, hidden_size: int) -> nn.Module:
        return Learned(self, hidden_size)


class Learned(nn.Module):
    """``x + table[position]``."""

    def __init__(self, config: LearnedConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding.from_pretrained(
            torch.empty(config.num_positions + config.offset, hidden_size), freeze=False
        )
        if not self.table.weight.is_meta:
            nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, x_TD: Tensor, positions_T: Tensor) -> Tensor:
        """Raises `BadRequestError` for a position that the table does not have."""
        check_positions(positions_T, len(self.table.weight) - self.config.offset)
        return x_TD + self.table(positions_T + self.config.offset)

    @torch.no_grad()
    def grow(self, num_positions: int) -> None:
        """Make the table longer. New rows start at random, spread like the old ones, and mean nothing before further
        training on texts of that length."""
        old = self.table.weight
        new = old.new_empty(num_positions + self.config.offset, old.shape[1])
        if len(new) < len(old):
            raise ValueError(f"the table has {len(old) - self.config.offset} positions already")
        nn.init.normal_(new, std=float(old[self.config.offset :].std()))
        new[: len(old)] = old
        self.table = nn.Embedding.from_pretrained(new, freeze=not old.requires_grad)


def check_positions(positions_T: Tensor, num_positions: int) -> None:
    if positions_T.numel() and (last := int(positions_T.max())) >= num_positions:
        raise BadRequestError(f"position {last} is beyond the {num_positions} positions that this model has learned")
