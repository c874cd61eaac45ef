"""`Cut`: some ranges of one dimension of a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """What is kept of a tensor: these ranges of ``dim``, in order."""

    dim: int
    ranges: tuple[tuple[int, int], ...]

    def of(self, whole: Tensor) -> Tensor:
        """A copy of what is kept."""
        return torch.cat([whole.narrow(self.dim, start, end - start) for start, end in self.ranges], self.dim)

    def read(self, slices: Any) -> Tensor:
        """The same of a safetensors slice, which reads no more than that."""
        before = (slice(None),) * self.dim
        return torch.cat([slices[(*before, slice(start, end))] for start, end in self.ranges], self.dim)
