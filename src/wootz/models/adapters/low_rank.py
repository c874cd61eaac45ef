"""LoRA beside the base's product, for the rows of a step that want it: ``y[rows] += B (A x[rows])``.

In one step each row may belong to another adapter, or to none. Rows of one adapter are gathered, so its matrices are
read once for all of them, and the cost is that of the rows that have an adapter (as in S-LoRA, arXiv 2311.03285, and
Punica's SGMV, arXiv 2310.18547). The other rows are never touched: they keep every bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

Rows = slice | Tensor


@dataclass(frozen=True)
class Piece:
    """One part's matrix B, scaled: from its columns of the hidden vector to its rows of the output."""

    hidden: slice
    out: slice
    b: Tensor


@dataclass(frozen=True)
class LowRank:
    """What one adapter adds to one `Linear`; the A of all its parts lie one below the other."""

    a: Tensor
    pieces: tuple[Piece, ...]

    def add(self, x_TC: Tensor, y_TR: Tensor, rows: Rows) -> None:
        hidden = F.linear(x_TC[rows], self.a)
        for piece in self.pieces:
            add_rows(y_TR[:, piece.out], rows, F.linear(hidden[:, piece.hidden], piece.b))

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + sum(piece.b.nbytes for piece in self.pieces)


def add_rows(y_TR: Tensor, rows: Rows, added: Tensor) -> None:
    if isinstance(rows, slice):
        y_TR[rows] += added
    else:
        y_TR.index_add_(0, rows, added)


@dataclass
class Step:
    """Which rows of the pass under way belong to which adapter. One for all projections of a model."""

    groups: list[tuple[str, Rows]] = field(default_factory=list)


class LinearAdapters:
    """All adapters on one `Linear`, which calls this with its input and the base's output."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.low_ranks: dict[str, LowRank] = {}

    def __call__(self, x_TC: Tensor, y_TR: Tensor) -> Tensor:
        for name, rows in self.step.groups:
            if low_rank := self.low_ranks.get(name):
                low_rank.add(x_TC, y_TR, rows)
        return y_TR


class EmbeddingAdapters:
    """The same for the embedding, as a hook behind its forward pass: A's columns are looked up, not multiplied with."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        """A transposed, ``(V, r)``, and B, ``(D, r)``, scaled."""

    def __call__(self, _module: object, inputs: tuple[Tensor], x_TD: Tensor) -> Tensor:
        for name, rows in self.step.groups:
            if pair := self.pairs.get(name):
                add_rows(x_TD, rows, F.linear(F.embedding(inputs[0][rows], pair[0]), pair[1]))
        return x_TD
