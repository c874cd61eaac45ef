"""One long text on several processes: every rank holds the whole model, and some of the text's tokens.

All but attention works on each token alone, so a rank computes its own. In attention each query looks at keys that are
elsewhere, and there are two ways to bring them together, each a `Context`, so the model's code is the same again:

- `RingContext` (Ring Attention, arXiv 2310.01889): keys and values go around; a rank adds what it sees of each share to
  a running softmax and hands the share on. Any number of ranks; a layer sends each share ``R - 1`` times, while it
  computes.
- `HeadsContext` (Ulysses, arXiv 2309.14509): an all-to-all turns shares of the tokens into shares of the heads,
  attention runs over the whole text with some heads, and a second all-to-all turns them back. Less traffic, ``1 / R``
  of each of q, k, v and the output; at most as many ranks as key/value heads.

Under a causal mask late tokens look at more than early ones. So a text is cut into 2 R pieces, and rank r takes the
r-th from either end (`own_places`): all ranks then have the same work.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from wootz.core.errors import UnsupportedError
from wootz.models.attention.dense import attend
from wootz.models.attention.online_softmax import PartialSoftmax
from wootz.models.context import Advance, RecurrentState, ScoreBias, relative_places, visible
from wootz.models.expert_parallel import Exchange

KEY_TILE = 1024
"""Keys whose scores are in memory at a time."""


def own_places(num_tokens: int, rank: int, num_ranks: int) -> Tensor:
    """The positions ``(T,)`` that are this rank's."""
    pieces = torch.arange(num_tokens).tensor_split(2 * num_ranks)
    return torch.cat((pieces[rank], pieces[-1 - rank]))


class _Spread:
    """What both have in common. ``positions_T`` are the places of this rank's tokens, in any order."""

    remembers = False

    def __init__(self, positions_T: Tensor, group: dist.ProcessGroup | None = None) -> None:
        self.positions_T = positions_T
        self.exchange = Exchange(group)
        self.rank, self.num_ranks = self.exchange.rank, self.exchange.num_ranks

    def attend_latent(self, slot: int, q_THd: Tensor, latent_Td: Tensor, *, value_dim: int, scale: float) -> Tensor:
        raise AssertionError("a context that keeps nothing is asked for plain attention")

    def recur(self, slot: int, spec: RecurrentState, advance: Advance, *inputs_T: Tensor) -> Tensor:
        raise UnsupportedError("a running state passes through a text in order: its tokens cannot be spread over ranks")

    def gather(self, x_T: Tensor) -> Tensor:
        """Every rank's rows, in the order of the text, on all ranks."""
        rows = self._of_all(x_T)
        return torch.cat(rows)[torch.cat(self._of_all(self.positions_T)).argsort()]

    def _of_all(self, x_T: Tensor) -> list[Tensor]:
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.num_ranks)]
        dist.all_gather(counts, torch.tensor([len(x_T)]), group=self.exchange.group)
        lengths = [int(count) for count in counts]
        padded = x_T.new_zeros((max(lengths), *x_T.shape[1:]))
        padded[: len(x_T)] = x_T
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded, group=self.exchange.group)
        return [part[:length] for part, length in zip(parts, lengths, strict=True)]


class RingContext(_Spread):
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
        exact = torch.promote_types(q_THd.dtype, torch.float32)
        q_HQd = q_THd.transpose(0, 1).to(exact)
        softmax = PartialSoftmax.empty(q_HQd.shape[:-1], v_TKe.shape[-1], q_HQd)
        if sinks_H is not None:
            sinks_HQ = sinks_H.to(exact)[:, None].expand(q_HQd.shape[:-1])
            softmax = softmax.merge(PartialSoftmax.of_output(torch.zeros_like(softmax.weighted), sinks_HQ))
        own_Q1 = self.positions_T.to(q_THd.device)[:, None]
        share = (k_TKd, v_TKe, own_Q1[:, 0])
        for step in range(self.num_ranks):
            following = self._pass_on(share) if step + 1 < self.num_ranks else None  # on its way while we compute
            for k_LKd, v_LKe, places_L in zip(*(part.split(KEY_TILE) for part in share), strict=True):
                relative_QL = places_L - own_Q1
                seen_QL = visible(relative_QL, causal, window)
                if seen_QL.any():
                    scores_HQL = _scores(q_HQd, k_LKd.to(exact), scale, softcap)
                    if bias is not None:
                        scores_HQL = scores_HQL + bias(q_HQd, k_LKd.transpose(0, 1), relative_QL)
                    scores_HQL = scores_HQL.masked_fill(~seen_QL, -torch.inf)
                    v_HLe = v_LKe.to(exact).transpose(0, 1).repeat_interleave(len(q_HQd) // v_LKe.shape[1], 0)
                    softmax = softmax.merge(PartialSoftmax.of(scores_HQL, v_HLe))
            if following is not None:
                share = following()
        return softmax.output.transpose(0, 1).to(q_THd.dtype)

    def _pass_on(self, share: tuple[Tensor, ...]):
        """Begin to send a share to the next rank and to get one from the rank before; the call waits for both."""
        ranks = dist.get_process_group_ranks(self.exchange.group or dist.group.WORLD)
        after, before = ranks[(self.rank + 1) % self.num_ranks], ranks[(self.rank - 1) % self.num_ranks]
        # Shares are equally large, or smaller by a few tokens; a row of padding would be a key, so lengths go first.
        length = torch.tensor([len(share[0])])
        theirs = torch.empty_like(length)
        _swap([length], [theirs], after, before)
        received = tuple(part.new_empty((int(theirs), *part.shape[1:])) for part in share)
        wait = _swap(list(share), list(received), after, before, wait=False)

        def arrived() -> tuple[Tensor, ...]:
            wait()
            self.exchange.bytes_sent += sum(part.nbytes for part in share)
            return received

        return arrived


class HeadsContext(_Spread):
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
        if bias is not None:
            raise UnsupportedError("heads whose scores are biased cannot be exchanged", hint="use the ring")
        if k_TKd.shape[1] % self.num_ranks:
            raise UnsupportedError(
                f"{k_TKd.shape[1]} key/value heads do not divide among {self.num_ranks} ranks", hint="use the ring"
            )
        places = self._of_all(self.positions_T)
        order = torch.cat(places).argsort().to(q_THd.device)
        lengths = [len(part) for part in places]
        q_HLd, k_KLd, v_KLe = (self._to_heads(x, lengths)[order].transpose(0, 1) for x in (q_THd, k_TKd, v_TKe))
        relative_LL = relative_places(len(order), len(order), order.device)
        is_plain = causal and window is None
        out_HLe = attend(
            q_HLd,
            k_KLd,
            v_KLe,
            scale=scale,
            is_causal=is_plain,
            mask_QL=None if is_plain else visible(relative_LL, causal, window),
            softcap=softcap,
            sinks_H=None if sinks_H is None else sinks_H.tensor_split(self.num_ranks)[self.rank],
        )
        back = torch.empty_like(out_HLe.transpose(0, 1))
        back[order] = out_HLe.transpose(0, 1)
        return self._to_tokens(back, lengths)

    def _to_heads(self, x_THd: Tensor, lengths: list[int]) -> Tensor:
        """Our tokens with all heads to all tokens with our heads, rank by rank."""
        each = x_THd.shape[1] // self.num_ranks
        by_rank = x_THd.unflatten(1, (self.num_ranks, each)).transpose(0, 1).flatten(0, 1)
        return self.exchange(by_rank, [len(x_THd)] * self.num_ranks, lengths)

    def _to_tokens(self, x_LHd: Tensor, lengths: list[int]) -> Tensor:
        own = lengths[self.rank]
        received = self.exchange(x_LHd, lengths, [own] * self.num_ranks)
        return received.unflatten(0, (self.num_ranks, own)).transpose(0, 1).flatten(1, 2)


def _scores(q_HQd: Tensor, k_LKd: Tensor, scale: float, softcap: float | None) -> Tensor:
    k_KdL = k_LKd.permute(1, 2, 0)
    scores = (q_HQd * scale).unflatten(0, (len(k_KdL), -1)) @ k_KdL.unsqueeze(1)
    scores_HQL = scores.flatten(0, 1)
    return scores_HQL if softcap is None else softcap * torch.tanh(scores_HQL / softcap)


def _swap(send: list[Tensor], receive: list[Tensor], after: int, before: int, *, wait: bool = True):
    """All of ``send`` to one rank, all of ``receive`` from another, at the same time."""
    operations = [dist.P2POp(dist.isend, x.contiguous(), after) for x in send]
    operations += [dist.P2POp(dist.irecv, x, before) for x in receive]
    under_way = dist.batch_isend_irecv(operations)

    def finish() -> None:
        for work in under_way:
            work.wait()

    if wait:
        finish()
    return finish
