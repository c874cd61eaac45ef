"""Draft heads at work: `wootz.models.draft_heads` on what the model computed anyway.

What heads need of a text's past, they keep like any layer: in the paged cache, by place. A *kept vector* is a hidden
state of the model, or of a head, for each token; keys and values of heads that attend lie beside it. So heads run along
with each step, over the same rows and in the same context, and prompts that are shared, answers that fork and drafts
that are rolled back are theirs too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wootz.engine.attention import PagedCache, PagedContext
from wootz.engine.runner import Model
from wootz.engine.scheduler import Chunk
from wootz.engine.sequence import Sequence
from wootz.engine.speculation.draft import ROOT, Draft
from wootz.engine.speculation.tree import BRANCHES, Tree
from wootz.models import Decoder
from wootz.models.context import CacheSpec, LatentKV
from wootz.models.draft_heads import DraftHeads
from wootz.models.run import Run, move_slots


class Heads:
    """What all kinds share: their place in the cache, and vectors kept there."""

    num_kept: int

    def __init__(self, heads: DraftHeads, model: Decoder) -> None:
        self.heads, self.model, self.depth = heads, model, heads.depth
        kept = LatentKV(model.config.hidden_size, model.config.hidden_size)
        self.cache_specs: list[CacheSpec] = [kept] * self.num_kept + heads.cache_specs
        size = sum(parameter.numel() for parameter in heads.parameters()) / len(heads.heads)
        self.cost = (size + model.config.vocab_size * model.config.hidden_size) / model.num_parameters

    def attach(self, model: Model, cache: PagedCache, first_slot: int) -> None:
        assert isinstance(model, Decoder)
        self.model, self.cache, self.first_slot = model, cache, first_slot
        move_slots(self.heads.modules(), first_slot + self.num_kept)

    def _keep(self, index: int, context: PagedContext, vectors_TD: Tensor) -> None:
        self.cache.store(self.first_slot + index).write(context.slots_T, vectors_TD)

    def _kept(self, index: int, sequences: list[Sequence], places: list[int]) -> Tensor:
        """One vector for each sequence, ``(S, D)``; zeros before its start."""
        size = self.cache.block_size
        blocks = [s.table.blocks[max(p, 0) // size] for s, p in zip(sequences, places, strict=True)]
        slots = [block * size + max(p, 0) % size for block, p in zip(blocks, places, strict=True)]
        vectors_SD = self.cache.store(self.first_slot + index).read(slots)
        started_S1 = torch.tensor(places, device=self.cache.device)[:, None] >= 0
        return vectors_SD.where(started_S1, 0)

    def _run(self, chunks: list[Chunk], context: PagedContext) -> Run:
        positions = [position for chunk in chunks for position in chunk.positions]
        return Run(torch.tensor(positions, device=self.cache.device), context)

    def _embed(self, chunks: list[Chunk]) -> Tensor:
        token_ids = [token for chunk in chunks for token in chunk.token_ids]
        return self.model.embedding(torch.tensor(token_ids, device=self.cache.device))


class ParallelHeads(Heads):
    """All guesses are made from one hidden state: the one that the last token was chosen from."""

    def __init__(self, heads: DraftHeads, model: Decoder) -> None:
        self.num_kept = 1 if heads.kind == "medusa" else len(heads.heads)
        super().__init__(heads, model)

    def observe(self, chunks: list[Chunk], hidden_TD: Tensor, context: PagedContext) -> None:
        if self.heads.kind == "medusa":
            self._keep(0, context, hidden_TD)
        else:
            for index, state_TD in enumerate(self.heads.parallel_states(hidden_TD, self._run(chunks, context))):
                self._keep(index, context, state_TD)

    def propose(self, sequences: list[Sequence], limits: list[int]) -> list[Draft | None]:
        places = [sequence.num_computed - 1 for sequence in sequences]
        states = [self._kept(index, sequences, places) for index in range(self.num_kept)]
        if self.heads.kind == "medusa":
            states = [head(states[0]) for head in self.heads.heads]
        logprobs = [self.model.unembed(state_SD).log_softmax(-1) for state_SD in states]
        drafts: list[Draft | None] = []
        for row, limit in enumerate(limits):
            tree = Tree()
            for logprobs_SV in logprobs[:limit]:
                tree.grow(logprobs_SV[row].expand(len(tree.leaves), -1), width=limit)
            drafts.append(tree.best(limit))
        return drafts


class SequentialHeads(Heads):
    """Each guess is made knowing the ones before it, one level of the tree after the other."""

    def __init__(self, heads: DraftHeads, model: Decoder) -> None:
        self.num_kept = len(heads.heads)
        super().__init__(heads, model)

    def observe(self, chunks: list[Chunk], hidden_TD: Tensor, context: PagedContext) -> None:
        starts = [row for row, parent in enumerate(_parents(chunks)) if parent < 0]
        parents_T = torch.tensor(_parents(chunks), device=self.cache.device).clamp_(min=0)
        sequences, places = [chunk.sequence for chunk in chunks], [chunk.start - 1 for chunk in chunks]

        def before(level: int, state_TD: Tensor) -> Tensor:
            self._keep(level, context, state_TD)
            before_TD = state_TD[parents_T]
            before_TD[starts] = self._kept(level, sequences, places)
            return before_TD

        self.heads.sequential_states(
            hidden_TD, self._embed(chunks), self._run(chunks, context), before, levels=len(self.heads.heads)
        )

    def propose(self, sequences: list[Sequence], limits: list[int]) -> list[Draft | None]:
        trees = {sequence: Tree() for sequence in sequences}
        levels = {s: min(self.depth, limit) for s, limit in zip(sequences, limits, strict=True)}
        widths = {s: min(BRANCHES, limit // max(1, levels[s] - 1)) for s, limit in zip(sequences, limits, strict=True)}
        made: dict[Sequence, Tensor] = {}
        """The last level's states, of the root and of the nodes there were."""
        for level in range(self.depth):
            going = [sequence for sequence in sequences if level < levels[sequence]]
            if not going:
                break
            chunks = [Chunk(s, s.num_computed, 1, trees[s].so_far() if level else None) for s in going]
            kept = 0 if self.heads.kind == "eagle" else level
            roots_SD = self._kept(kept, going, [sequence.num_computed - 1 for sequence in going])
            before_TD = torch.cat([_before(c, root, made) for c, root in zip(chunks, roots_SD.split(1), strict=True)])
            context = PagedContext(self.cache, chunks)
            state_TD = self.heads.head_at(level)(before_TD, self._embed(chunks), self._run(chunks, context))
            made = dict(zip(going, state_TD.split([chunk.num_rows for chunk in chunks]), strict=True))
            leaves = torch.cat([made[sequence][-len(trees[sequence].leaves) :] for sequence in going])
            logprobs_LV = self.model.unembed(leaves).log_softmax(-1)
            for s, rows_LV in zip(going, logprobs_LV.split([len(trees[s].leaves) for s in going]), strict=True):
                trees[s].grow(rows_LV, widths[s])
        return [trees[sequence].best(limit) for sequence, limit in zip(sequences, limits, strict=True)]


def _parents(chunks: list[Chunk]) -> list[int]:
    """The row of the token before each row; below 0 where it is in no row, but computed earlier."""
    parents: list[int] = []
    for chunk in chunks:
        first, last = len(parents), len(parents) + chunk.num_tokens - 1
        parents += [-1, *range(first, last)]
        if chunk.draft is not None:
            parents += [last if parent == ROOT else last + 1 + parent for parent in chunk.draft.parents]
    return parents


def _before(chunk: Chunk, root_1D: Tensor, made: dict[Sequence, Tensor]) -> Tensor:
    """For each row of a chunk that is a tree, what was made of its parent."""
    if chunk.draft is None:
        return root_1D
    return torch.cat((root_1D, made[chunk.sequence][[1 + parent for parent in chunk.draft.parents]]))
