"""A batch of token rows, and where batches come from: what `data` gives and `training` takes.

Shapes: B rows, T tokens in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

IGNORED = -100
"""A label that counts for nothing, as in PyTorch's cross-entropy."""


@dataclass(frozen=True)
class Batch:
    """``(B, T)`` each, int64: inputs, and what should come next (`IGNORED` where nothing is asked)."""

    tokens_BT: Tensor
    labels_BT: Tensor
    documents: tuple[tuple[int, ...], ...] | None = None
    """For each row the lengths of the documents packed into it, in order; they sum to T. No token sees one of another
    document, and positions begin at 0 in each. None: every row is one document."""

    @staticmethod
    def of(rows_BT: Tensor) -> Batch:
        """Language modelling: every token is the label of the one before it."""
        return Batch(rows_BT[:, :-1], rows_BT[:, 1:])

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.tokens_BT.to(device), self.labels_BT.to(device), self.documents)

    @property
    def lengths(self) -> list[int]:
        """Of all documents, row after row: what `PackedContext` asks for."""
        if self.documents is None:
            num_rows, length = self.tokens_BT.shape
            return [length] * num_rows
        return [length for row in self.documents for length in row]

    @property
    def positions_T(self) -> Tensor:
        """Of the tokens in their documents, flat, on the batch's device."""
        return torch.cat([torch.arange(length) for length in self.lengths]).to(self.tokens_BT.device)


class Batches(Protocol):
    """An endless source of batches that can say where it stands and go on from there: the batches after
    ``load_state_dict(state)`` are those that would have come after ``state_dict()`` gave it."""

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]:
        """Where the source stands, in JSON's types."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
