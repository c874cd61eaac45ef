"""Beam search over the paged cache: the likeliest answers found, not drawn, as transformers defines them.

A search keeps ``num_beams`` unfinished answers, its beams, all of one length. When each has been computed, their
likeliest continuations compete; the best go on, those that end are kept as finished, with their log-probability divided
by ``length ** length_penalty``. To the scheduler a beam is a sequence like any other: it may wait, be cut into chunks,
be preempted and computed again. One that has been computed before the others holds its blocks and has nothing to do.

Going on from a beam is a fork of its block table, so what beams have in common lies in the cache once, and whoever
writes into a shared block first copies it. A beam with one successor is continued in place; the sequences of those
without any are taken over by the second successors of others.

Selection, the finished list and the three kinds of ``early_stopping`` are those of transformers' ``_beam_search``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from wootz.engine.cache import BlockTable
from wootz.engine.output import TextStream
from wootz.engine.protocol import Output
from wootz.engine.sampler import adjust
from wootz.engine.scheduler import Scheduler
from wootz.engine.sequence import Request, Sequence


class Continuation(NamedTuple):
    """One more token for a beam, and the log-probability of all together."""

    total: float
    beam: Sequence
    token: int


class Answer(NamedTuple):
    """A beam that has ended."""

    score: float
    token_ids: list[int]


@dataclass(eq=False)
class BeamSearch:
    """The state of one request's search."""

    request: Request
    totals: dict[Sequence, float] = field(default_factory=dict)
    """The log-probability of each beam's answer so far."""
    heard: dict[Sequence, list[Continuation]] = field(default_factory=dict)
    """The best continuations of the beams that were computed at their present length."""
    finished: list[Answer] = field(default_factory=list)
    """Best first, at most ``num_beams``."""

    @property
    def num_kept(self) -> int:
        """Continuations that compete: even if each end token were chosen by every beam, ``num_beams`` could go on."""
        return max(2, 1 + len(self.request.end_token_ids)) * self.request.params.num_beams

    def hear(self, beam: Sequence, logits_V: Tensor) -> None:
        """A beam was computed. As in transformers, penalties and bias change log-probabilities here, not logits."""
        logprobs_V = logits_V.log_softmax(-1)
        adjust(logprobs_V, beam)
        values, tokens = logprobs_V.topk(min(self.num_kept, len(logprobs_V)))
        before = self.totals.setdefault(beam, 0.0)
        self.heard[beam] = [
            Continuation(before + value, beam, token)
            for value, token in zip(values.tolist(), tokens.tolist(), strict=True)
        ]

    @property
    def is_complete(self) -> bool:
        """Whether all beams were heard. (At first there is one: the prompt.)"""
        return len(self.heard) == len(self.totals)

    def select(self) -> list[Continuation]:
        """The continuations that go on, best first; none if the search is over."""
        request, params = self.request, self.request.params
        ranked = sorted((c for some in self.heard.values() for c in some), key=lambda c: -c.total)[: self.num_kept]
        self.heard.clear()
        length = len(ranked[0].beam.token_ids) + 1
        num_output = length - len(request.prompt_token_ids)
        is_last = length == request.max_len

        def ends(continuation: Continuation) -> bool:
            return is_last or continuation.token in request.end_token_ids

        for continuation in filter(ends, ranked[: params.num_beams]):
            token_ids = [*continuation.beam.token_ids[len(request.prompt_token_ids) :], continuation.token]
            self.finished.append(Answer(continuation.total / num_output**params.length_penalty, token_ids))
        self.finished = sorted(self.finished, key=lambda answer: -answer.score)[: params.num_beams]
        going = [continuation for continuation in ranked if not ends(continuation)][: params.num_beams]
        return going if going and self._may_improve(going[0].total, num_output) else []

    def outputs(self, new_text: Callable[[], TextStream]) -> list[Output]:
        """The best answers of a search that is over, as they are given out."""
        request, params, outputs = self.request, self.request.params, list[Output]()
        for index, answer in enumerate(self.finished[: params.n]):
            text, last = new_text(), answer.token_ids[-1]
            ended = last in request.end_token_ids
            shown = "".join([text.push(token) for token in answer.token_ids[: -1 if ended else None]]) + text.finish()
            outputs.append(
                Output(
                    request_id=request.id,
                    index=index,
                    text=shown,
                    token_ids=answer.token_ids,
                    finish_reason="stop" if ended else "length",
                    stop_reason=last if ended and last in params.stop_token_ids else None,
                    score=answer.score,
                )
            )
        return outputs

    def _may_improve(self, best_total: float, num_output: int) -> bool:
        """Whether to look on: what the best running beam might score is more than the worst that is finished. What it
        might score is judged at its present length; "never" judges it at the length that would favour it most."""
        params = self.request.params
        if len(self.finished) < params.num_beams:
            return True
        if params.early_stopping is True:
            return False
        longest = self.request.max_len - len(self.request.prompt_token_ids)
        favoured = longest if params.early_stopping == "never" and params.length_penalty > 0 else num_output
        return best_total / favoured**params.length_penalty > self.finished[-1].score


def go_on(search: BeamSearch, going: list[Continuation], beams: list[Sequence], scheduler: Scheduler) -> None:
    """Let ``beams``, all sequences of the search, be the chosen continuations."""
    parents = dict.fromkeys(continuation.beam for continuation in going)
    free = [beam for beam in beams if beam not in parents]
    for beam in free:
        scheduler.remove(beam)
    search.totals = {}
    successors: list[tuple[Sequence, Continuation]] = []
    for continuation in going:
        parent = continuation.beam
        child = parent
        if parent in search.totals:  # it is continued in place already
            child = free.pop()
            _branch(scheduler, parent, child)
        search.totals[child] = continuation.total
        successors.append((child, continuation))
    for child, continuation in successors:  # only now, as others were forked from what they were
        if child in scheduler.running and child.num_remaining:  # it was preempted, and is being computed again
            scheduler.preempt(child)
        child.token_ids.append(continuation.token)


def _branch(scheduler: Scheduler, parent: Sequence, child: Sequence) -> None:
    """Start ``child``, which holds nothing, where ``parent`` is; if that has lost its blocks, from the prompt on."""
    child.token_ids = list(parent.token_ids)
    child.table, child.num_computed = BlockTable(), 0
    if parent in scheduler.running and not parent.num_remaining:
        scheduler.fork(parent, child)
    else:
        scheduler.add(child)


def hear(beams: Iterable[Sequence], logits_SV: Tensor) -> list[BeamSearch]:
    """Beams were computed, a row for each. Returns the searches that now know all of theirs."""
    heard: dict[BeamSearch, None] = {}
    for beam, logits_V in zip(beams, logits_SV, strict=True):
        if (search := beam.request.beams) is not None:
            search.hear(beam, logits_V)
            heard[search] = None
    return [search for search in heard if search.is_complete]
