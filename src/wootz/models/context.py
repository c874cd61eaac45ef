"""What a model asks of the world around it: who may look at whom, and what is remembered.

A model is written once, over a flat run of tokens::

    hidden_TD = model(token_ids_T, positions_T, context)

and never decides what may look at what. Each layer hands its queries, keys and values to `context`, which
knows. In training (and in `model.logits`) that is `PackedContext`: documents laid end to end, causal inside each,
never across. In the engine it is the paged cache. A layer also declares what it keeps per sequence (`CacheSpec`),
and the engine builds its cache from that.

Shape suffixes, used in every file of this room: T tokens of the flat run, D model width, H query heads,
K key/value heads, F feed-forward width, d head dimension, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class PagedKV:
    """A layer keeps one key and one value per token: ``2 * num_kv_heads * head_dim`` numbers."""

    num_kv_heads: int
    head_dim: int


CacheSpec = PagedKV
"""What a layer keeps per sequence. Windowed, latent and recurrent kinds join this union with their layers."""


class Context(Protocol):
    """The answer to "what may I look at?", for all tokens of one forward pass."""

    def attend(self, layer: int, q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, *, scale: float) -> Tensor:
        """Attention output ``(T, H, d)`` of this layer's tokens over everything each of them may see.

        ``layer`` is the layer's index in the model's `cache_specs`. H is a multiple of K; query head h reads key/value
        head ``h // (H // K)``. A context that remembers stores the keys and values before it attends.
        """
        ...


class PackedContext:
    """Documents laid end to end: causal inside each, never across. Remembers nothing.

    ``lengths`` are the documents' token counts, in order; they must add up to T.
    """

    def __init__(self, lengths: list[int]) -> None:
        if any(length < 1 for length in lengths):
            raise ValueError("every document needs at least one token")
        self.lengths = lengths

    def attend(self, layer: int, q_THd: Tensor, k_TKd: Tensor, v_TKd: Tensor, *, scale: float) -> Tensor:
        pieces = [
            torch.nn.functional.scaled_dot_product_attention(
                q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), is_causal=True, scale=scale, enable_gqa=True
            ).transpose(0, 1)
            for q, k, v in zip(
                q_THd.split(self.lengths), k_TKd.split(self.lengths), v_TKd.split(self.lengths), strict=True
            )
        ]
        return torch.cat(pieces)
