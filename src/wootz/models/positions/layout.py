"""From one rotary pair layout to the other: a permutation of the rows that make queries and keys.

With "rotate half", dimension i turns together with ``i + d/2``; interleaved, 2i with 2i + 1. Put the rows of the query
and key projections of every head in the other order, say so in the config, and the model computes the same. With only
one of the two it still runs, and writes nonsense.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wootz.core.errors import UnsupportedError
from wootz.models.blocks.attention import Attention


def interleaving(dim: int) -> Tensor:
    """Where each dimension of the interleaved order is found in the half-split one: ``(dim,)``."""
    return torch.arange(dim).view(2, dim // 2).T.flatten()


def convert_rows(rows: Tensor, head_dim: int, rotary_dim: int, *, to_interleaved: bool) -> Tensor:
    """Rows ``(heads * head_dim, …)`` in the other layout; dimensions that are not turned stay."""
    order = interleaving(rotary_dim)
    order = order if to_interleaved else order.argsort()
    order = torch.cat((order, torch.arange(rotary_dim, head_dim)))
    return rows.unflatten(0, (-1, head_dim))[:, order.to(rows.device)].flatten(0, 1)


@torch.no_grad()
def convert_layout(source: nn.Module, target: nn.Module) -> None:
    """Give ``target``, built from the same config but for the layout, the weights of ``source``.

    Raises `UnsupportedError` where something else than plain attention turns its queries and keys.
    """
    target.load_state_dict(source.state_dict())
    for theirs, ours in zip(source.modules(), target.modules(), strict=True):
        if getattr(theirs, "rotary", None) is None:
            continue
        if not (isinstance(theirs, Attention) and isinstance(ours, Attention)) or theirs.config.qkv_by_group:
            raise UnsupportedError(f"the rotary layout of {type(theirs).__name__} cannot be converted")
        before, after = theirs.config.rotary, ours.config.rotary
        if before is None or after is None or before.interleaved == after.interleaved:
            raise UnsupportedError("both models turn the same pairs")
        settings = {"head_dim": theirs.config.head_dim, "rotary_dim": before.dim, "to_interleaved": after.interleaved}
        turned = (theirs.config.num_heads + theirs.config.num_kv_heads) * theirs.config.head_dim
        for rows in (ours.qkv.weight, ours.qkv.bias):
            if rows is not None:
                rows[:turned] = convert_rows(rows[:turned], **settings)
        for norm in (ours.q_norm, ours.k_norm):
            if norm is not None:
                for rows in norm.parameters():
                    rows.copy_(convert_rows(rows, **settings))
