"""`Draft`: tokens that somebody guesses come next, as a tree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ROOT = -1
"""The sequence's last token, behind which the draft grows."""


@dataclass(frozen=True, eq=False)
class Draft:
    """``parents[i]`` is the node before token i: an earlier token of the draft, or `ROOT`. One text is a chain.

    ``probabilities`` ``(N, V)`` are what each token was drawn from, for a chain whose tokens were drawn by chance; None
    of a draft that has no chance in it, whatever it was made by.
    """

    token_ids: list[int]
    parents: list[int]
    probabilities: Tensor | None = None

    @staticmethod
    def chain(token_ids: list[int], probabilities: Tensor | None = None) -> Draft:
        return Draft(token_ids, list(range(ROOT, len(token_ids) - 1)), probabilities)

    def __len__(self) -> int:
        return len(self.token_ids)

    @cached_property
    def depths(self) -> list[int]:
        """How many tokens behind the root each token is, from 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return depths

    @property
    def is_chain(self) -> bool:
        return self.parents == list(range(ROOT, len(self) - 1))

    @property
    def ancestry_NN(self) -> Tensor:
        """Whether token j is token i or on the way to it, as booleans: what each token may look at."""
        ancestry_NN = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent != ROOT:
                ancestry_NN[node] |= ancestry_NN[parent]
        return ancestry_NN

    @cached_property
    def _children(self) -> dict[tuple[int, int], int]:
        return {
            (parent, token): node for node, (parent, token) in enumerate(zip(self.parents, self.token_ids, strict=True))
        }

    def child(self, node: int, token_id: int) -> int | None:
        """The node behind ``node`` that says ``token_id``."""
        return self._children.get((node, token_id))
