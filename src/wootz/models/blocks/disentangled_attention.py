"""DeBERTa's attention over content and relative position (arXiv 2006.03654, versions 2 and 3: arXiv 2111.09543).

One table of offsets serves all layers; each layer makes its own vectors of it, with the projections of its queries and
keys (``share_projections``) or with ones of their own. What the terms are stands in `wootz.models.positions.deberta`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from wootz.models.blocks.norms import NormConfig
from wootz.models.blocks.sizes import check_sizes
from wootz.models.linear import Linear
from wootz.models.positions import deberta
from wootz.models.positions.deberta import OffsetBuckets
from wootz.models.run import Run


@dataclass(frozen=True, kw_only=True)
class DisentangledAttentionConfig:
    num_heads: int
    offsets: OffsetBuckets
    content_to_position: bool = True
    position_to_content: bool = True
    share_projections: bool = True
    table_norm: NormConfig | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "num_heads")

    def build(self, hidden_size: int) -> nn.Module:
        return DisentangledAttention(self, hidden_size)


class OffsetTable(nn.Module):
    """A vector per offset, ``(2 * span, D)``; the same module in every layer."""

    def __init__(self, rows: int, hidden_size: int, norm: NormConfig | None) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.empty(rows, hidden_size), freeze=False)
        self.norm = norm.build(hidden_size) if norm else None
        if not self.table.weight.is_meta:
            nn.init.normal_(self.table.weight, std=0.02)

    def forward(self) -> Tensor:
        return self.table.weight if self.norm is None else self.norm(self.table.weight)


class DisentangledAttention(nn.Module):
    def __init__(self, config: DisentangledAttentionConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.qkv = Linear(hidden_size, (hidden_size,) * 3, bias=True)
        self.output = Linear(hidden_size, hidden_size, bias=True, into_residual=True)
        self.offset_table = OffsetTable(2 * config.offsets.span, hidden_size, config.table_norm)
        own_a = config.content_to_position and not config.share_projections
        own_b = config.position_to_content and not config.share_projections
        self.offset_key = Linear(hidden_size, hidden_size, bias=True) if own_a else None
        self.offset_query = Linear(hidden_size, hidden_size, bias=True) if own_b else None
        terms = 1 + config.content_to_position + config.position_to_content
        self.scale = (terms * (hidden_size // config.num_heads)) ** -0.5

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        q_THd, k_THd, v_THd = (part_TD.unflatten(-1, (self.config.num_heads, -1)) for part_TD in self._qkv(x_TD))
        a_HRd, b_HRd = self._offsets()
        bias = partial(self._bias, a_HRd=a_HRd, b_HRd=b_HRd)
        out_THd = run.context.attend(-1, q_THd, k_THd, v_THd, scale=self.scale, causal=False, bias=bias)
        return self.output(out_THd.flatten(1))

    def _qkv(self, x_TD: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x_TD).chunk(3, dim=-1)

    def _offsets(self) -> tuple[Tensor | None, Tensor | None]:
        """Each offset's key, which contents ask for, and its query, which asks contents: ``(H, R, d)``."""
        table_RD = self.offset_table()
        query_RD, key_RD = (table_RD,) * 2
        if self.config.share_projections:
            query_RD, key_RD, _ = self._qkv(table_RD)
        if self.offset_key is not None:
            key_RD = self.offset_key(table_RD)
        if self.offset_query is not None:
            query_RD = self.offset_query(table_RD)
        return (
            self._heads(key_RD) if self.config.content_to_position else None,
            self._heads(query_RD) if self.config.position_to_content else None,
        )

    def _heads(self, x_RD: Tensor) -> Tensor:
        return x_RD.unflatten(-1, (self.config.num_heads, -1)).transpose(0, 1)

    def _bias(
        self, q_HQd: Tensor, k_KLd: Tensor, relative_QL: Tensor, *, a_HRd: Tensor | None, b_HRd: Tensor | None
    ) -> Tensor:
        return deberta.bias(q_HQd, k_KLd, self.config.offsets.index(-relative_QL), a_HRd, b_HRd, self.scale)
