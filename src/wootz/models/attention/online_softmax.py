"""Softmax in one pass, over scores that arrive in pieces (arXiv 1805.02867).

What has been seen so far is summed up in three things: the largest score m, the total ``l = Σ exp(s - m)``, and the
values weighted alike. Two such summaries merge into one, and merging is associative and commutative: so keys may be
visited tile by tile (`tiled`), split over devices, or be those of different patterns (`dilated`), and what comes out is
the softmax over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PartialSoftmax:
    """The softmax over some keys, for queries of shape ``…``; ``weighted`` is ``(…, e)``, and e may be 0."""

    max: Tensor
    total: Tensor
    weighted: Tensor

    @staticmethod
    def empty(shape: tuple[int, ...], value_dim: int, like: Tensor) -> PartialSoftmax:
        """Nothing seen yet: the neutral element of `merge`."""
        zeros = like.new_zeros(shape)
        return PartialSoftmax(zeros - torch.inf, zeros, like.new_zeros(*shape, value_dim))

    @staticmethod
    def of(scores_QL: Tensor, values_Le: Tensor) -> PartialSoftmax:
        """Over the keys of one piece. Minus infinity is a key that may not be looked at."""
        maximum = scores_QL.amax(-1)
        weights_QL = torch.exp(scores_QL - _finite(maximum).unsqueeze(-1))
        return PartialSoftmax(maximum, weights_QL.sum(-1), weights_QL @ values_Le)

    @staticmethod
    def of_output(out: Tensor, logsumexp: Tensor) -> PartialSoftmax:
        """What some other code has already computed: its output and the log of its normaliser."""
        seen = (logsumexp > -torch.inf).to(out.dtype)
        return PartialSoftmax(logsumexp, seen, out * seen.unsqueeze(-1))

    def merge(self, other: PartialSoftmax) -> PartialSoftmax:
        """Over both's keys; a key of both counts twice."""
        maximum = torch.maximum(self.max, other.max)
        ours, theirs = (torch.exp(part.max - _finite(maximum)) for part in (self, other))
        return PartialSoftmax(
            maximum,
            ours * self.total + theirs * other.total,
            ours.unsqueeze(-1) * self.weighted + theirs.unsqueeze(-1) * other.weighted,
        )

    @property
    def output(self) -> Tensor:
        """The attention output ``(…, e)``; zeros where nothing was to be seen."""
        return self.weighted / self.total.masked_fill(self.total == 0, 1).unsqueeze(-1)

    @property
    def logsumexp(self) -> Tensor:
        """Log of the softmax's normaliser; minus infinity where nothing was to be seen."""
        return self.max + self.total.log()


def _finite(maximum: Tensor) -> Tensor:
    """Something to subtract from scores that are all minus infinity, so that they stay so."""
    return maximum.masked_fill(maximum == -torch.inf, 0)
