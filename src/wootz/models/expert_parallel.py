"""Expert parallelism (GShard, arXiv 2006.16668): each of R ranks holds E/R experts, and tokens travel to them.

    exchange = Exchange()                     # the default process group
    shard_experts(model, exchange)            # keeps this rank's experts, frees the others
    …                                         # train or run as ever, each rank with tokens of its own
    exchange.bytes_sent

Every rank's tokens are already sorted by expert (`wootz.models.blocks.moe.dispatch`), and so by rank: one all-to-all
takes them there, one brings the results back, and in training two more carry the gradients. What is not an expert is on
every rank, and its gradients are to be summed over ranks, as in data parallelism; an expert's are complete, because all
of its tokens came to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wootz.models.blocks.experts import Experts
from wootz.models.blocks.moe import MoE
from wootz.models.blocks.router import RouterConfig


class Exchange:
    """All-to-all among the ranks of a process group, counting what leaves this one."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.num_ranks = dist.get_rank(group), dist.get_world_size(group)
        self.bytes_sent = 0
        """To other ranks, so far, in both directions of a pass; row counts included."""

    def __call__(self, x_N: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """``send[r]`` rows of ``x_N``, in order, go to rank r; ``receive[r]`` come from it. Differentiable."""
        received = _AllToAll.apply(x_N, list(send), list(receive), self)
        assert isinstance(received, Tensor)
        return received

    def counts(self, counts: Sequence[int]) -> list[list[int]]:
        """From how many rows each expert gets of us (E), how many each of ours gets of each rank ``[R][E/R]``."""
        ours = torch.tensor(counts)  # on the CPU: the counts are needed there
        theirs = self._move(ours, None, None)
        return theirs.view(self.num_ranks, -1).tolist()

    def _move(self, x_N: Tensor, send: list[int] | None, receive: list[int] | None) -> Tensor:
        received = x_N.new_empty((len(x_N) if receive is None else sum(receive), *x_N.shape[1:]))
        dist.all_to_all_single(received, x_N.contiguous(), receive, send, group=self.group)
        stays = len(x_N) // self.num_ranks if send is None else send[self.rank]
        self.bytes_sent += (len(x_N) - stays) * math.prod(x_N.shape[1:]) * x_N.element_size()
        return received


class _AllToAll(torch.autograd.Function):
    """The gradient takes the way back."""

    @staticmethod
    def forward(ctx: Any, x_N: Tensor, send: list[int], receive: list[int], exchange: Exchange) -> Tensor:
        ctx.send, ctx.receive, ctx.exchange = send, receive, exchange
        return exchange._move(x_N, send, receive)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.exchange._move(gradients[0], ctx.receive, ctx.send), None, None, None


class ShardedExperts(nn.Module):
    """Called like the `Experts` of all ranks, on every rank at once; ``local`` are this rank's."""

    def __init__(self, local: Experts, exchange: Exchange) -> None:
        super().__init__()
        self.num_local = len(local.down.weight)
        self.local, self.exchange = local, exchange

    def forward(self, x_ND: Tensor, counts: Sequence[int]) -> Tensor:
        counts_Re = self.exchange.counts(counts)
        size = self.num_local
        send = [sum(counts[start : start + size]) for start in range(0, len(counts), size)]
        receive = [sum(counts_e) for counts_e in counts_Re]
        received_MD = self.exchange(x_ND, send, receive)
        # They come rank by rank, and each rank's by expert; we want them by expert alone.
        owners_M = torch.arange(size).repeat(len(counts_Re)).repeat_interleave(torch.tensor(counts_Re).flatten())
        order_M = owners_M.argsort(stable=True).to(x_ND.device)
        per_expert = [sum(column) for column in zip(*counts_Re, strict=True)]
        y_MD = self.local(received_MD.index_select(0, order_M), per_expert)
        y_MD = torch.zeros_like(received_MD).index_copy(0, order_M, y_MD)
        return self.exchange(y_MD, receive, send)


def shard_experts(model: nn.Module, exchange: Exchange) -> nn.Module:
    """Leave this rank its share of every mixture's experts, in place. Weights are to be loaded before that."""
    for module in model.modules():
        if isinstance(module, MoE):
            assert isinstance(module.experts, Experts), "already sharded"
            _keep_own(module.experts, exchange)
            module.experts = ShardedExperts(module.experts, exchange)
    return model


def _keep_own(experts: Experts, exchange: Exchange) -> None:
    num_experts = len(experts.down.weight)
    if num_experts % exchange.num_ranks:
        raise ValueError(f"{num_experts} experts do not divide among {exchange.num_ranks} ranks")
    each = num_experts // exchange.num_ranks
    mine = slice(exchange.rank * each, (exchange.rank + 1) * each)
    for projection in (experts.gate_up, experts.down):
        for name, parameter in list(projection.named_parameters()):
            setattr(projection, name, nn.Parameter(parameter.detach()[mine].clone()))


@dataclass(frozen=True)
class AllToAllVolume:
    """Bytes that one rank sends to others, expected for one pass through one mixture."""

    dispatch: float
    combine: float
    backward: float

    @property
    def total(self) -> float:
        return self.dispatch + self.combine + self.backward


def all_to_all_volume(
    router: RouterConfig,
    hidden_size: int,
    *,
    tokens_per_rank: int,
    num_ranks: int,
    bytes_per_number: float = 2,
    dispatch_bytes_per_number: float | None = None,
    training: bool = False,
    one_copy_per_rank: bool = False,
) -> AllToAllVolume:
    """Of T tokens' k copies, ``(R - 1) / R`` live elsewhere if routing is even: ``T k D (R - 1) / R`` numbers each way.

    With ``one_copy_per_rank`` (DeepEP) a token goes once to each rank that has any of its experts, and comes back as
    one partial sum: it touches ``R (1 - C(E - E/R, k) / C(E, k))`` ranks, again each with even chances. Dispatch may be
    in fewer bytes than combine (FP8 in DeepSeek-V3). Backward is both again, at combine's precision.
    """
    if router.num_experts % num_ranks:
        raise ValueError(f"{router.num_experts} experts do not divide among {num_ranks} ranks")
    copies: float = router.top_k
    if one_copy_per_rank:
        others = router.num_experts - router.num_experts // num_ranks
        nobody_there = math.comb(others, router.top_k) / math.comb(router.num_experts, router.top_k)
        copies = num_ranks * (1 - nobody_there)
    numbers = tokens_per_rank * copies * hidden_size * (num_ranks - 1) / num_ranks
    combine = numbers * bytes_per_number
    return AllToAllVolume(
        dispatch=numbers * (dispatch_bytes_per_number or bytes_per_number),
        combine=combine,
        backward=2 * combine if training else 0.0,
    )
