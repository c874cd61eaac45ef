"""What the ranks of a stage say to each other in a pass, hung onto a finished model from outside.

Two sums a layer: one over the attention's output, one over the feed-forward part's. Before the first layer one more,
over the embedding; after the last, the logits are gathered. With whole experts on each rank (`Place.split_experts`),
the second sum gives way to tokens that travel: each rank takes an equal part of them through the router, they go to
their experts and come back (`wootz.models.expert_parallel`), and then the parts are gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.blocks.experts import Experts
from wootz.models.blocks.mlp import MLP, GatedMLP
from wootz.models.blocks.moe import MoE
from wootz.models.decoder import Decoder, Layer
from wootz.models.expert_parallel import Exchange, ShardedExperts
from wootz.models.linear import Linear
from wootz.models.run import Run


class TensorGroup:
    """The ranks that share every layer, and what this one has said to them."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.num_sums = self.num_gathers = 0
        self.bytes_sent = 0
        """As a ring sends it: ``2 (n - 1) / n`` of what is summed, ``n - 1`` times what is gathered."""

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks, on all of them; in place."""
        x = x.contiguous()
        dist.all_reduce(x, group=self.group)
        self.num_sums += 1
        self.bytes_sent += 2 * x.nbytes * (self.size - 1) // self.size
        return x

    def gather(self, x: Tensor, dim: int, size: int) -> Tensor:
        """Every rank's part, in order, on all of them: ``size`` in all, of which each rank but the last ones has
        equally much."""
        each = -(-size // self.size)
        x = x.movedim(dim, 0)
        x = F.pad(x, (0, 0) * (x.ndim - 1) + (0, each - len(x))).contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x, group=self.group)
        self.num_gathers += 1
        self.bytes_sent += x.nbytes * (self.size - 1)
        return torch.cat(parts)[:size].movedim(0, dim)


def connect(model: Decoder, group: TensorGroup) -> None:
    """Join a share that `cut` has left, and that holds its weights, to the others; in place."""
    if isinstance(model.head, Linear):
        first = group.rank * -(-model.config.vocab_size // group.size)
        model.embedding = ShardedEmbedding(model.embedding.weight, first, group)  # pyright: ignore[reportAttributeAccessIssue]
        model.tie_weights()
        _change_output(model.head, lambda logits_TV: group.gather(logits_TV, 1, model.config.vocab_size))
    for layer in model.layers:
        if isinstance(layer, Layer):
            if layer.mixer is not None:
                _change_output(layer.mixer.get_submodule("output"), group.sum)
            match layer.ffn:
                case GatedMLP() | MLP():
                    _change_output(layer.ffn.down, group.sum)
                case MoE(experts=Experts() as experts) as moe:
                    if len(experts.down.weight) == moe.config.router.num_experts:
                        _change_output(moe, group.sum)
                    else:
                        moe.experts = ShardedExperts(experts, Exchange(group.group))
                        layer.ffn = TokensApart(moe, group)


def _change_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    def hook(_module: nn.Module, _input: Any, output: Tensor) -> Tensor:
        return change(output)

    module.register_forward_hook(hook)


class ShardedEmbedding(nn.Module):
    """Called like the `nn.Embedding` whose rows from ``first`` on it holds; others are zeros, then all are summed."""

    def __init__(self, weight: Tensor, first: int, group: TensorGroup) -> None:
        super().__init__()
        self.weight, self.first, self.group = weight, first, group

    def forward(self, token_ids_T: Tensor) -> Tensor:
        rows_T = token_ids_T - self.first
        here_T = (rows_T >= 0) & (rows_T < len(self.weight))
        x_TD = F.embedding(rows_T.where(here_T, 0), self.weight)
        return self.group.sum(x_TD.masked_fill(~here_T.unsqueeze(1), 0))


class TokensApart(nn.Module):
    """Called like the `MoE` inside on the same tokens on every rank; each rank routes its part of them."""

    def __init__(self, moe: MoE, group: TensorGroup) -> None:
        super().__init__()
        self.moe, self.group = moe, group

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        each = -(-len(x_TD) // self.group.size)
        own_TD = x_TD[self.group.rank * each : (self.group.rank + 1) * each]
        return self.group.gather(self.moe(own_TD, run), 0, len(x_TD))
