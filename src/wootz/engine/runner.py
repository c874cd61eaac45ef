"""One forward pass: a list of chunks in, logits of the tokens that choose a next one out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from wootz.engine.adapters import AdapterCache, KnownAdapter
from wootz.engine.attention import PagedCache, PagedContext
from wootz.engine.fused import whole_step
from wootz.engine.sampler import Logits
from wootz.engine.scheduler import Chunk
from wootz.engine.scoring import score_prompts
from wootz.engine.timeline import Unwatched
from wootz.models.context import CacheSpec, Context


class ModelShape(Protocol):
    """What the engine asks of a model's configuration."""

    @property
    def family(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...


class Model(Protocol):
    """What the engine asks of a model; everything in `wootz.models` is one."""

    @property
    def config(self) -> ModelShape: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def cache_specs(self) -> list[CacheSpec]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def __call__(self, token_ids_T: Tensor, positions_T: Tensor, context: Context) -> Tensor: ...
    def unembed(self, hidden_TD: Tensor) -> Tensor: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def prepare_for_inference(self) -> object: ...


class Runner:
    """The model, the cache it looks into, and the adapters on it."""

    def __init__(self, model: Model, cache: PagedCache, adapters: AdapterCache) -> None:
        self.model, self.cache, self.adapters = model, cache, adapters
        self.timeline = Unwatched()
        self.scores_prompts = True
        """Whether prompts get the log-probabilities that they ask for here; not from a model that drafts."""
        self.observe: Callable[[list[Chunk], Tensor, PagedContext], None] | None = None
        """Called with what was computed: the chunks, their hidden states, their context."""

    def run(self, chunks: list[Chunk]) -> Logits:
        """Logits ``(S, V)``, valid until the next step: for each chunk that `samples`, in their order, a row for its
        last token and one for each token of its draft."""
        passes = self.adapters.passes(chunks)
        if len(passes) == 1:
            return self._run(chunks)
        logits_SV = torch.cat([self._run(part).rows_SV for part in passes])
        rows: dict[int, list[int]] = {}
        first = 0
        for chunk in (chunk for part in passes for chunk in part if chunk.samples):
            rows[id(chunk)] = list(range(first, first := first + 1 + chunk.num_drafted))
        return Logits(logits_SV[[row for chunk in chunks if chunk.samples for row in rows[id(chunk)]]])

    def _run(self, chunks: list[Chunk]) -> Logits:
        if self.observe is None and (logits := whole_step(self.model, chunks)) is not None:
            self.timeline.mark("forward")
            return logits
        token_ids: list[int] = []
        positions: list[int] = []
        choosing_rows: list[int] = []
        owners: list[KnownAdapter | None] = []
        for chunk in chunks:
            token_ids += chunk.token_ids
            positions += chunk.positions
            owners += [chunk.sequence.request.adapter] * chunk.num_rows
            if chunk.samples:
                choosing_rows += range(len(token_ids) - 1 - chunk.num_drafted, len(token_ids))
        context = PagedContext(self.cache, chunks)
        device = self.model.device
        token_ids_T, positions_T = torch.tensor(token_ids, device=device), torch.tensor(positions, device=device)
        self.timeline.mark("prepare")
        self.adapters.seed(self.cache, chunks)
        with self.adapters.rows(owners):
            hidden_TD = self.model(token_ids_T, positions_T, context)
            if self.scores_prompts:
                score_prompts(chunks, hidden_TD, self.model.unembed)
        if self.observe is not None:
            self.observe(chunks, hidden_TD, context)
        with self.adapters.rows([owners[row] for row in choosing_rows]):
            logits_SV = self.model.unembed(hidden_TD[torch.tensor(choosing_rows, dtype=torch.int64, device=device)])
        self.timeline.mark("forward")
        return Logits(logits_SV)
