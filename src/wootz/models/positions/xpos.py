"""xPos (arXiv 2212.10554): rotary positions whose scores also decay with distance.

Pair i of a query at position m is multiplied by ``zeta_i ** (m / scale_base)``, that of a key at n by the inverse, so
what is left in their product is ``zeta_i ** ((m - n) / scale_base)``: the faster a pair turns, the sooner it is
forgotten. That only makes sense looking back, and the two factors grow apart with the position itself: in float32 they
are safe to some 30 times ``scale_base``, in float16 to a few times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class XPosDecay:
    """Which of the heads that are turned are queries, and how fast they forget."""

    num_heads: int
    num_kv_heads: int
    scale_base: float = 512.0
    gamma: float = 0.4
    """The larger, the slower the fastest pairs are forgotten: ``zeta_i = (2i/d + gamma) / (1 + gamma)``."""

    def __call__(self, positions_T: Tensor, num_pairs: int) -> Tensor:
        """What each pair is multiplied by, ``(T, R, pairs)`` in float32; R are the query heads, then the key heads."""
        pairs = torch.arange(num_pairs, dtype=torch.float32, device=positions_T.device) / num_pairs
        zeta = (pairs + self.gamma) / (1 + self.gamma)
        query_T1p = (zeta ** (positions_T.float() / self.scale_base).unsqueeze(-1)).unsqueeze(1)
        query_THp = query_T1p.expand(-1, self.num_heads, -1)
        return torch.cat((query_THp, (1 / query_T1p).expand(-1, self.num_kv_heads, -1)), dim=1)
