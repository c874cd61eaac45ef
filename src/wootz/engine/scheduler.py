"""Who computes what in the next step: continuous batching with chunked prefill (Orca, OSDI '22; arXiv 2403.02310).

A sequence has tokens that are not computed yet: its whole prompt at first, later the one token it sampled last. A step
takes from each sequence some of them, `max_step_tokens` in all. The policy is `schedule`; nothing else decides.

Nobody starves: the order of arrival is a priority, the oldest can take a block from anyone younger, and any one
sequence fits into the cache by itself (the engine refuses those that do not).
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from wootz.engine.cache import BlockPool, BlockTable
from wootz.engine.sequence import Sequence
from wootz.engine.speculation.draft import Draft


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
    """Sequences that wait and sequences that run, both in order of arrival. Only those that run hold blocks."""

    def __init__(self, pool: BlockPool, *, max_running: int, max_step_tokens: int) -> None:
        self.pool, self.max_running, self.max_step_tokens = pool, max_running, max_step_tokens
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_cached_tokens = 0

    def schedule(self) -> list[Chunk]:
        """The next step: running answers first, then prompts under way, then whoever waits and fits."""
        chunks: list[Chunk] = []
        budget = self.max_step_tokens
        for sequence in sorted(self.running, key=lambda s: (s.num_remaining > 1, s.priority)):
            if not sequence.num_remaining:
                continue  # a beam that waits for the others of its search
            while budget and sequence in self.running and not self._has_room(sequence):
                self.preempt(self.running[-1])
            if budget and sequence in self.running:
                chunks.append(self._next_chunk(sequence, budget))
                budget -= chunks[-1].num_tokens
        while budget and self.waiting and len(self.running) < self.max_running and self._admit(self.waiting[0]):
            sequence = self.waiting.pop(0)
            insort(self.running, sequence, key=lambda s: s.priority)
            chunks.append(self._next_chunk(sequence, budget))
            budget -= chunks[-1].num_tokens
        if self.running and not chunks:  # beams only, that wait for others which find no place: the youngest makes one
            self.preempt(self.running[-1])
            return self.schedule()
        return chunks

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=lambda s: s.priority)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Start ``child`` where ``parent`` is, over the same blocks; without a place to run it waits, holding none."""
        if len(self.running) < self.max_running:
            child.table = self.pool.fork(parent.table)
            child.num_computed = parent.num_computed
            insort(self.running, child, key=lambda s: s.priority)
        else:
            self.add(child)

    def remove(self, sequence: Sequence) -> None:
        """It has ended, or is not wanted any more: its blocks are free at once."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.pool.release(sequence.table)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def computed(self, chunks: list[Chunk]) -> None:
        """The step has run: what it computed is in the cache, and full blocks may be shared."""
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.num_computed = chunk.end
            self.pool.publish(sequence.table, sequence.token_ids, chunk.end)

    def preempt(self, sequence: Sequence) -> None:
        """Take its blocks. It will be computed again, as far as it is not found in the cache; no token is lost.

        The latest arrival has no chunk in this step yet: only an answer needs a block, and answers go oldest first.
        """
        self.running.remove(sequence)
        self.pool.release(sequence.table)
        sequence.table, sequence.num_computed = BlockTable(), 0
        self.add(sequence)
        self.num_preemptions += 1

    # --- drafts -----------------------------------------------------------------------------------------------

    def make_room(self, sequence: Sequence, num_tokens: int) -> int:
        """How many of ``num_tokens`` drafted tokens can be written behind a sequence's last one: nobody gives way."""
        end = len(sequence.token_ids)
        for place in range(end, end + num_tokens):
            if not self.pool.make_writable(sequence.table, place):
                return place - end
        return num_tokens

    def roll_back(self, sequence: Sequence, num_accepted: int) -> None:
        """Of a draft that was computed, the first ``num_accepted`` tokens stay; the others' room is free again."""
        sequence.num_computed += num_accepted
        self.pool.truncate(sequence.table, sequence.num_computed)
        self.pool.publish(sequence.table, sequence.token_ids, sequence.num_computed)

    # --- mechanism --------------------------------------------------------------------------------------------

    def _next_chunk(self, sequence: Sequence, budget: int) -> Chunk:
        return Chunk(sequence, sequence.num_computed, min(sequence.num_remaining, budget))

    def _has_room(self, sequence: Sequence) -> bool:
        """A prompt got all its blocks when it was admitted; an answer grows by a block now and then."""
        return sequence.num_remaining > 1 or self.pool.make_writable(sequence.table, len(sequence.token_ids) - 1)

    def _admit(self, sequence: Sequence) -> bool:
        """Give it blocks for all its tokens, if that leaves one for each running answer to grow into."""
        wanted = sequence.request.prompt_scores
        unscored = wanted is not None and not wanted.is_complete  # what is shared is not computed, so has no logits
        admitted = self.pool.admit(sequence.token_ids, spare=len(self.running), share=not unscored)
        if admitted is None:
            return False
        sequence.table, sequence.num_computed = admitted
        if sequence.request.cached_tokens is None:
            sequence.request.cached_tokens = sequence.num_computed
            self.num_cached_tokens += sequence.num_computed
        return True

    def check_integrity(self) -> None:
        """Raise AssertionError unless every sequence is where it should be. Holds between steps."""
        self.pool.check_integrity([sequence.table for sequence in self.running])
        assert len(self.running) <= self.max_running, "too many are running"
        everyone = self.running + self.waiting
        assert len(set(everyone)) == len(everyone), "a sequence is in two places"
        for queue in (self.running, self.waiting):
            assert queue == sorted(queue, key=lambda s: s.priority), "out of order"
        for sequence in self.waiting:
            assert not sequence.table.blocks, "a waiting sequence holds blocks"
            assert sequence.num_computed == 0
        for sequence in self.running:
            may_wait = sequence.request.beams is not None
            assert 0 <= sequence.num_computed < len(sequence.token_ids) + may_wait, "nothing left to compute"
            assert sequence.num_computed <= len(sequence.table.blocks) * self.pool.block_size, "computed into nowhere"
