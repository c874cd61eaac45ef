"""`Speculation`: drafts into a step, verdicts out of it.

A drafted token is a row of the step like any other, and its keys and values go where they would go if it is right. What
was wrong is rolled back: the room is given up, and nobody ever gets to share it.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from wootz.core import SpeculationConfig, UnsupportedError
from wootz.engine.attention import PagedCache, PagedContext
from wootz.engine.parallel.model import ParallelModel
from wootz.engine.runner import Model, Runner
from wootz.engine.scheduler import Chunk, Scheduler
from wootz.engine.sequence import Sequence
from wootz.engine.speculation.draft import Draft
from wootz.engine.speculation.pace import DEFAULT_ROW_COSTS, Pace
from wootz.engine.speculation.verify import Walk
from wootz.models.context import CacheSpec, RecurrentState

CHAIN_TOKENS, TREE_TOKENS = 4, 12
"""Drafted per step, at most, unless the config says otherwise."""


class Speculator(Protocol):
    """Something that guesses. Whatever it says, what is written stays right; a good one makes it faster."""

    @property
    def cost(self) -> float:
        """What drafting one token deeper takes, in steps of the model."""
        ...

    @property
    def depth(self) -> int | None:
        """Of the trees it drafts; None if it drafts chains, as long as they are wanted."""
        ...

    @property
    def cache_specs(self) -> Many[CacheSpec]:
        """What it keeps of each token: more layers in the paged cache, behind the model's, shared and rolled back
        alike."""
        ...

    def attach(self, model: Model, cache: PagedCache, first_slot: int) -> None:
        """Here are the model that it drafts for and the cache, whose layers from ``first_slot`` on are what
        ``cache_specs`` asked for."""
        ...

    def propose(self, sequences: list[Sequence], limits: list[int]) -> list[Draft | None]:
        """A draft for each answer, of at most so many tokens, or none. All but the last token of each are computed."""
        ...

    def observe(self, chunks: list[Chunk], hidden_TD: Tensor, context: PagedContext) -> None:
        """The model has computed these chunks, with these final hidden states; ``context`` is theirs."""
        ...


class Speculation:
    """One `Speculator` at work for an engine, and the count of what came of it."""

    def __init__(self, speculator: Speculator, pace: Pace, scheduler: Scheduler, cache: PagedCache) -> None:
        self.speculator, self.pace, self.scheduler, self.cache = speculator, pace, scheduler, cache
        self.num_drafts = self.num_drafted = self.num_accepted = 0

    @classmethod
    def begin(
        cls, speculator: Speculator, config: SpeculationConfig | None, scheduler: Scheduler, runner: Runner
    ) -> Speculation:
        """Let ``speculator`` look at what the runner computes, and at the cache. Raises `UnsupportedError` for a model
        with a running state, which cannot be rolled back."""
        specs, device = runner.cache.specs, runner.model.device
        if any(isinstance(spec, RecurrentState) for spec in specs):
            raise UnsupportedError(
                "speculation: a model with recurrent layers cannot take back a token that was wrong",
                hint="leave speculation out for this model",
            )
        if isinstance(runner.model, ParallelModel):
            raise UnsupportedError("speculation: an engine of several processes does not draft")
        config = config or SpeculationConfig()
        row_cost = DEFAULT_ROW_COSTS.get(device.type, DEFAULT_ROW_COSTS["cpu"])
        pace = Pace(
            draft_cost=speculator.cost,
            depth=speculator.depth,
            most=config.num_tokens or (CHAIN_TOKENS if speculator.depth is None else TREE_TOKENS),
            row_cost=row_cost if config.row_cost is None else config.row_cost,
        )
        runner.observe = speculator.observe
        speculation = cls(speculator, pace, scheduler, runner.cache)
        speculation.attach(runner.model)
        return speculation

    def attach(self, model: Model) -> None:
        """Show the speculator what it works beside; again when that has slept, and perhaps is another object."""
        first_slot = len(self.cache.specs) - len(self.speculator.cache_specs)
        self.speculator.attach(model, self.cache, first_slot)

    def extend(self, chunks: list[Chunk]) -> list[Chunk]:
        """The step, with drafts behind the answers that are worth it, in the budget and the blocks that are left."""
        last_tokens = [chunk.sequence for chunk in chunks if chunk.num_tokens == 1 and chunk.samples]
        writing = [s for s in last_tokens if s.num_output_tokens and s.request.beams is None]
        writing = [s for s in writing if s.constraint is None]  # masks are of one place in a grammar, not of a draft's
        writing = [s for s in writing if s.request.adapter is None]  # who drafts knows the model alone
        budget = self.scheduler.budget_left
        limits: dict[Sequence, int] = {}
        for sequence in writing:
            to_the_end = sequence.request.max_len - len(sequence.token_ids) - 1
            wanted = min(self.pace.length(sequence, len(writing)), to_the_end, budget)
            if wanted > 0 and (limit := self.scheduler.make_room(sequence, wanted)):
                limits[sequence] = limit
                budget -= limit
        if not limits:
            return chunks
        drafts = dict(zip(limits, self.speculator.propose(list(limits), list(limits.values())), strict=True))
        for sequence in limits:
            if not drafts[sequence]:
                self.scheduler.pool.truncate(sequence.table, len(sequence.token_ids))
        return [replace(chunk, draft=drafts.get(chunk.sequence)) for chunk in chunks]

    def settle(self, walks: list[Walk]) -> None:
        """Keep of each draft what was right, in its order, and roll back the rest."""
        sources: list[int] = []
        targets: list[int] = []
        for walk in walks:
            if walk.draft is not None:
                self._count(walk, walk.draft)
                end = walk.sequence.num_computed
                sources += self._slots(walk.sequence, [end + node for node in walk.path])
                targets += self._slots(walk.sequence, list(range(end, end + len(walk.path))))
        if sources != targets:
            self.cache.move(sources, targets)
        for walk in walks:
            if walk.draft is not None:
                self.scheduler.roll_back(walk.sequence, len(walk.path))

    def _slots(self, sequence: Sequence, places: list[int]) -> list[int]:
        size, blocks = self.cache.block_size, sequence.table.blocks
        return [blocks[place // size] * size + place % size for place in places]

    def _count(self, walk: Walk, draft: Draft) -> None:
        accepted = len(walk.path)
        self.num_drafts += 1
        self.num_drafted += len(draft)
        self.num_accepted += accepted
        was_wrong = not walk.has_ended and accepted < max(draft.depths)
        self.pace.learn(walk.sequence, accepted, accepted + was_wrong)
