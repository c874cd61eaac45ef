"""Context parallelism: one flat run of tokens, each rank computing some of them, in training.

All but attention works on each token alone. In attention a rank gathers the keys and values of all tokens, layer by
layer, and its own queries look at them (as Llama 3 was trained, arXiv 2407.21783, section 3.3.2): with few key/value
heads that is little, and any packing of documents is as simple as on one rank. Backward, gradients of keys and values
are scattered back by sums. Ranks take the r-th of 2 R pieces from either end, so that all have the same work.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_tensor_autograd

from wootz.core.errors import ConfigError, UnsupportedError
from wootz.data.batch import IGNORED, Batch
from wootz.models.attention.dense import attend
from wootz.models.blocks.attention import Attention
from wootz.models.context import Advance, PackedContext, RecurrentState, ScoreBias, relative_places, visible
from wootz.models.decoder import Decoder
from wootz.models.parallel.sequence import own_places
from wootz.models.positions.rotary import Rotary


class SpreadText:
    """Which tokens of a run are this rank's, and how a model computes no others."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def own(self, num_tokens: int) -> Tensor:
        if num_tokens % (2 * self.size):
            raise ConfigError(f"{num_tokens} tokens of a batch do not divide into {2 * self.size} equal pieces")
        return own_places(num_tokens, self.rank, self.size)

    def asked(self, batch: Batch) -> Batch:
        """The same batch, in which only this rank's tokens have labels."""
        labels = torch.full_like(batch.labels_BT, IGNORED).flatten()
        own = self.own(len(labels)).to(labels.device)
        labels[own] = batch.labels_BT.flatten()[own]
        return Batch(batch.tokens_BT, labels.view_as(batch.labels_BT), batch.documents)

    def take(self, model: Any, inputs: tuple[Tensor, Tensor, PackedContext]) -> tuple[Tensor, Tensor, GatheredKeys]:
        """A forward pre-hook: of tokens, positions and context, what is this rank's."""
        token_ids_T, positions_T, context = inputs
        own = self.own(len(token_ids_T)).to(token_ids_T.device)
        return token_ids_T[own], positions_T[own], GatheredKeys(context.lengths, own, self.group)

    def give(self, model: Any, inputs: Any, hidden_TD: Tensor) -> Tensor:
        """A forward hook: hidden states in their places in the text, zeros where another rank has them."""
        return self.placed(hidden_TD)

    def placed(self, hidden_TD: Tensor) -> Tensor:
        own = self.own(len(hidden_TD) * self.size).to(hidden_TD.device)
        return hidden_TD.new_zeros(len(hidden_TD) * self.size, hidden_TD.shape[1]).index_copy(0, own, hidden_TD)


def check_spreads(model: Decoder) -> None:
    """Raises `ConfigError` for a model whose tokens cannot be computed on several ranks."""
    for module in model.modules():
        if isinstance(module, Rotary) and module.depends_on_length:
            raise ConfigError("rotary positions that depend on a text's length cannot be spread over ranks")
        if isinstance(module, Attention) and not module.config.causal:
            raise ConfigError("context parallelism is for causal attention")


class GatheredKeys:
    """The context of one pass: own queries, everybody's keys and values. ``lengths`` are all documents'."""

    remembers = False

    def __init__(self, lengths: Sequence[int], own_T: Tensor, group: dist.ProcessGroup) -> None:
        self.group = group
        size = dist.get_world_size(group)
        places = [own_places(sum(lengths), rank, size) for rank in range(size)]
        self.order_T = torch.cat(places).argsort().to(own_T.device)
        self.spans = _spans(lengths, own_T)

    def attend(
        self,
        slot: int,
        q_THd: Tensor,
        k_TKd: Tensor,
        v_TKe: Tensor,
        *,
        scale: float,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        sinks_H: Tensor | None = None,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        if not causal:
            raise UnsupportedError("text that is spread over ranks is read from left to right only")
        widths = k_TKd.shape[1] * k_TKd.shape[2], v_TKe.shape[1] * v_TKe.shape[2]
        kv_TN = torch.cat((k_TKd.flatten(1), v_TKe.flatten(1)), 1)
        kv_TN = all_gather_tensor_autograd(kv_TN, 0, self.group)[self.order_T]
        k_TN, v_TN = kv_TN.split(widths, 1)
        k_KTd, v_KTe = (x.unflatten(1, (k_TKd.shape[1], -1)).transpose(0, 1) for x in (k_TN, v_TN))
        pieces, done = [], 0
        for document, start, end in self.spans:
            q_HQd = q_THd[done : done + end - start].transpose(0, 1)
            k_KLd, v_KLe = k_KTd[:, document:end], v_KTe[:, document:end]
            relative_QL = relative_places(end - start, end - document, q_THd.device) if bias or window else None
            out_HQe = attend(
                q_HQd,
                k_KLd,
                v_KLe,
                scale=scale,
                is_causal=window is None,
                mask_QL=None if window is None or relative_QL is None else visible(relative_QL, True, window),
                softcap=softcap,
                sinks_H=sinks_H,
                bias_HQL=None if bias is None or relative_QL is None else bias(q_HQd, k_KLd, relative_QL),
            )
            pieces.append(out_HQe.transpose(0, 1))
            done += end - start
        return torch.cat(pieces)

    def attend_latent(self, slot: int, q_THd: Tensor, latent_Td: Tensor, *, value_dim: int, scale: float) -> Tensor:
        latent_T1d = latent_Td.unsqueeze(1)
        return self.attend(slot, q_THd, latent_T1d, latent_T1d[..., :value_dim], scale=scale)

    def recur(self, slot: int, spec: RecurrentState, advance: Advance, *inputs_T: Tensor) -> Tensor:
        raise UnsupportedError("a running state passes through a text in order: its tokens cannot be spread over ranks")


def _spans(lengths: Sequence[int], own_T: Tensor) -> list[tuple[int, int, int]]:
    """Own tokens as ranges inside documents: where the document starts, where the range does, where it ends."""
    ends = list(accumulate(lengths))
    documents_T = torch.searchsorted(torch.tensor(ends), own_T.cpu(), right=True)
    place_T = torch.arange(len(own_T))
    # A range goes on while the next own token is the next of the text, and of the same document.
    breaks = torch.nonzero((own_T.cpu() - place_T).diff() + documents_T.diff()).flatten() + 1
    spans = []
    for range_T, document_T in zip(own_T.tensor_split(breaks), documents_T.tensor_split(breaks), strict=True):
        document = int(document_T[0])
        spans.append((ends[document] - lengths[document], int(range_T[0]), int(range_T[-1]) + 1))
    return spans
