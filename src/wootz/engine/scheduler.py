"""Who computes what in the next step: continuous batching with chunked prefill (Orca, OSDI '22; arXiv 2403.02310).

A sequence has tokens that are not computed yet: its whole prompt at first, later the one token it sampled last. A step
takes from each sequence some of them, as many in all as `Pace` allows. The policy is `schedule`; nothing else decides.
Whose turn it is to be admitted is said by `Queue`, and what becomes of a preempted sequence's blocks by `SwapSpace`.

Nobody starves. Waiting improves a priority, and with the usual victims ("latest") the first in order can take a block
from anyone behind it; with the others, who was preempted less often is preempted first. Any one sequence fits into
the cache by itself (the engine refuses those that do not).
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from wootz.engine.cache import BlockPool, BlockTable
from wootz.engine.pace import Pace
from wootz.engine.queue import Queue
from wootz.engine.sequence import Request, Sequence
from wootz.engine.speculation.draft import Draft
from wootz.engine.swap import SwapSpace

Victim = Literal["latest", "longest", "fifo"]


@dataclass(frozen=True)
class Chunk:
    """The next ``num_tokens`` tokens of a sequence, from ``start`` on; and behind its last token perhaps a draft."""

    sequence: Sequence
    start: int
    num_tokens: int
    draft: Draft | None = None

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def num_drafted(self) -> int:
        return 0 if self.draft is None else len(self.draft)

    @property
    def num_rows(self) -> int:
        """Of the flat run. Row i's keys and values go to place ``start + i``, a draft's like any other."""
        return self.num_tokens + self.num_drafted

    @property
    def token_ids(self) -> list[int]:
        own = self.sequence.token_ids[self.start : self.end]
        return own if self.draft is None else own + self.draft.token_ids

    @property
    def positions(self) -> list[int]:
        """Where each row stands in its text: the branches of a draft stand side by side."""
        own = list(range(self.start, self.end))
        return own if self.draft is None else own + [self.end - 1 + depth for depth in self.draft.depths]

    @property
    def samples(self) -> bool:
        """Whether it reaches the sequence's last token, whose logits choose the next one."""
        return self.end == len(self.sequence.token_ids)


class Scheduler:
    """Sequences that wait and sequences that run, the latter in order. Only those that run hold blocks."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_running: int,
        pace: Pace,
        swap: SwapSpace | None = None,
        victim: Victim = "latest",
        user_weights: Mapping[str, float] | None = None,
        may_start: Callable[[Request], bool] = lambda request: True,
    ) -> None:
        self.may_start = may_start
        self.pool, self.max_running, self.pace, self.victim = pool, max_running, pace, victim
        self.swap = swap or SwapSpace(0, pool.block_size)
        self.waiting = Queue(weights=user_weights, slack=pace.max_step_tokens, num_cached=self._num_cached)
        self.running: list[Sequence] = []
        self.budget_left = 0
        """Tokens that the step just scheduled may compute besides: drafts."""
        self.num_steps = self.num_preemptions = 0
        self.num_admitted = self.num_prefix_hits = self.num_cached_tokens = 0
        self.wait_seconds = 0.0

    def schedule(self) -> list[Chunk]:
        """The next step: running answers first, then prompts under way, then whoever's turn it is and fits."""
        self.num_steps += 1
        chunks: dict[Sequence, Chunk] = {}
        budget = self.pace.budget(sum(sequence.num_remaining == 1 for sequence in self.running))
        for sequence in sorted(self.running, key=lambda s: (s.num_remaining > 1, s.order)):
            if not sequence.num_remaining:
                continue  # a beam that waits for the others of its search
            while budget and sequence in self.running and not self._has_room(sequence):
                budget += self.preempt(self._victim(), chunks)
            if budget and sequence in self.running:
                budget -= self._compute(sequence, budget, chunks)
        while budget and (sequence := self.waiting.first(self.num_steps)):
            if self._admit(sequence):
                budget -= self._compute(sequence, budget, chunks)
            elif self.running and self.running[-1].level > sequence.level:
                budget += self.preempt(self.running[-1], chunks)
            else:
                break
        if self.running and not chunks:  # beams only, that wait for others which find no place: the youngest makes one
            self.preempt(self.running[-1], chunks)
            return self.schedule()
        self.budget_left = budget
        return list(chunks.values())

    def add(self, sequence: Sequence) -> None:
        """A new sequence waits for its turn."""
        self.waiting.arrive(sequence)
        self.waiting.put(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Start ``child`` where ``parent`` is, over the same blocks; without a place to run it waits, holding none."""
        if len(self.running) == self.max_running:
            self.add(child)
            return
        self.waiting.arrive(child)
        child.table = self.pool.fork(parent.table)
        child.num_computed = child.num_charged = parent.num_computed
        self._run(child, parent.level)

    def remove(self, sequence: Sequence) -> None:
        """It has ended, or is not wanted any more: its blocks are free at once."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.pool.release(sequence.table)
        elif sequence in self.waiting:
            self.waiting.take(sequence)
            self._forget_saved(sequence)
        else:
            return
        self.waiting.leave(sequence)

    def computed(self, chunks: list[Chunk]) -> None:
        """The step has run: what it computed is in the cache, and full blocks may be shared."""
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.num_computed = chunk.end
            self.pool.publish(sequence.table, sequence.token_ids, chunk.end)

    def preempt_all(self) -> None:
        """Nothing that is in the cache will be used again: everybody waits, and will be computed anew."""
        for sequence in list(self.running):
            self.preempt(sequence, {}, may_swap=False)
        for sequence in self.waiting:
            self._forget_saved(sequence)
        self.pool.forget()

    def preempt(self, sequence: Sequence, chunks: dict[Sequence, Chunk] | None = None, *, may_swap: bool = True) -> int:
        """Take its blocks, and its chunk of this step; returns how many tokens that gives back.

        Its part of the cache is swapped out, or will be computed again as far as it is not found; no token is lost.
        """
        self.running.remove(sequence)
        if may_swap and sequence.request.beams is None:  # a beam's tokens may be others when it comes back
            sequence.saved = self.swap.save(sequence.table, sequence.num_computed, self.pace.seconds_per_token)
        self.pool.release(sequence.table)
        sequence.table, sequence.num_computed = BlockTable(), 0
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.put(sequence)
        chunk = (chunks or {}).pop(sequence, None)
        return chunk.num_tokens if chunk else 0

    # --- drafts -----------------------------------------------------------------------------------------------

    def make_room(self, sequence: Sequence, num_tokens: int) -> int:
        """How many of ``num_tokens`` drafted tokens can be written behind a sequence's last one: nobody gives way."""
        end = len(sequence.token_ids)
        for place in range(end, end + num_tokens):
            if not self.pool.make_writable(sequence.table, place):
                return place - end
        return num_tokens

    def roll_back(self, sequence: Sequence, num_accepted: int) -> None:
        """Of a draft that was computed, the first ``num_accepted`` tokens stay; the others' room is free again.

        The user is charged for those that stay, with the next chunk; what was wrong is at the engine's own expense.
        """
        sequence.num_computed += num_accepted
        self.pool.truncate(sequence.table, sequence.num_computed)
        self.pool.publish(sequence.table, sequence.token_ids, sequence.num_computed)

    # --- mechanism --------------------------------------------------------------------------------------------

    def _compute(self, sequence: Sequence, budget: int, chunks: dict[Sequence, Chunk]) -> int:
        """Let it compute what it can in this step; returns how many tokens that is."""
        chunk = chunks[sequence] = self._next_chunk(sequence, budget)
        self.waiting.charge(sequence, chunk.end)
        return chunk.num_tokens

    def _next_chunk(self, sequence: Sequence, budget: int) -> Chunk:
        return Chunk(sequence, sequence.num_computed, min(sequence.num_remaining, budget))

    def _has_room(self, sequence: Sequence) -> bool:
        """A prompt got all its blocks when it was admitted; an answer grows by a block now and then."""
        return sequence.num_remaining > 1 or self.pool.make_writable(sequence.table, len(sequence.token_ids) - 1)

    def _num_cached(self, sequence: Sequence) -> int:
        return self.pool.num_cached(sequence.token_ids, salt=sequence.request.salt) if self.pool.prefix_caching else 0

    def _admit(self, sequence: Sequence) -> bool:
        """Give it blocks for all its tokens, if that leaves one for each running answer to grow into."""
        request = sequence.request
        if len(self.running) == self.max_running or not self.may_start(request):
            return False
        wanted = request.prompt_scores
        unscored = wanted is not None and not wanted.is_complete  # what is shared is not computed, so has no logits
        admitted = self.pool.admit(sequence.token_ids, salt=request.salt, spare=len(self.running), share=not unscored)
        if admitted is None:
            return False
        sequence.table, num_found = admitted
        sequence.num_computed = max(num_found, request.num_virtual_tokens)
        if request.cached_tokens is None:
            self._count_prefix(sequence)
        if sequence.saved is not None:
            sequence.num_computed = self.swap.load(sequence.saved, sequence.table, sequence.num_computed)
            sequence.saved = None
        sequence.num_charged = max(sequence.num_charged, sequence.num_computed)
        self.waiting.admitted(sequence)
        self._run(sequence, sequence.level)
        return True

    def _run(self, sequence: Sequence, level: int) -> None:
        sequence.level, sequence.admitted_at = level, self.num_steps
        insort(self.running, sequence, key=lambda s: s.order)

    def _count_prefix(self, sequence: Sequence) -> None:
        found = sequence.num_computed - sequence.request.num_virtual_tokens
        sequence.request.cached_tokens = found
        self.num_admitted += 1
        self.wait_seconds += time.monotonic() - sequence.request.submitted_time
        self.num_prefix_hits += found > 0
        self.num_cached_tokens += found

    def _victim(self) -> Sequence:
        """Who gives its blocks up: of the worst level the latest arrival; or of those preempted least the one that
        runs for the longest time, or that arrived first."""
        if self.victim == "latest":
            return self.running[-1]
        worst = [sequence for sequence in self.running if sequence.level == self.running[-1].level]
        if self.victim == "longest":
            return min(worst, key=lambda s: (s.num_preemptions, s.admitted_at, s.arrival))
        return min(worst, key=lambda s: (s.num_preemptions, s.arrival))

    def _forget_saved(self, sequence: Sequence) -> None:
        if sequence.saved is not None:
            self.swap.drop(sequence.saved)
            sequence.saved = None

    def check_integrity(self) -> None:
        """Raise AssertionError unless every sequence is where it should be. Holds between steps."""
        waiting = list(self.waiting)
        self.pool.check_integrity([sequence.table for sequence in self.running])
        self.swap.check_integrity(sequence.saved for sequence in waiting if sequence.saved is not None)
        self.waiting.check_integrity(self.running)
        assert len(self.running) <= self.max_running, "too many are running"
        everyone = self.running + waiting
        assert len(set(everyone)) == len(everyone), "a sequence is in two places"
        assert self.running == sorted(self.running, key=lambda s: s.order), "out of order"
        for sequence in waiting:
            assert not sequence.table.blocks, "a waiting sequence holds blocks"
            assert sequence.num_computed == 0
            assert sequence.saved is None or sequence.saved.num_computed < len(sequence.token_ids)
        for sequence in self.running:
            may_wait = sequence.request.beams is not None
            assert sequence.saved is None, "a running sequence is swapped out too"
            assert 0 <= sequence.num_computed < len(sequence.token_ids) + may_wait, "nothing left to compute"
            assert sequence.num_computed <= len(sequence.table.blocks) * self.pool.block_size, "computed into nowhere"
