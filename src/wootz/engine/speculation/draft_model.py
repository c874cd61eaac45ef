"""A draft model: a small model of the same tokenizer writes ahead of the large one.

Its keys and values are more layers of the same paged cache: the tables that say where a sequence's tokens are hold for
both models, so what is shared, forked, preempted or rolled back for one is so for the other. It reads a prompt when
the model does, in the same chunks. Ahead of an answer it writes as any engine does, one token per pass for all answers
at once, from the distribution that temperature, truncation and penalties leave of its own logits.

For a request without a seed each token is drawn with a random number of its own and is judged by both probabilities,
which accepts the most. A request with a seed must get the same tokens whatever it is batched with, and so whether or
not there was room to draft: its drafts are drawn with the very number that the model will draw with, and are right
where both come to the same token.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as Rows
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from wootz.core import ConfigError
from wootz.engine.adapters import AdapterCache
from wootz.engine.attention import PagedCache, PagedContext
from wootz.engine.fused import fuse
from wootz.engine.runner import Model, Runner
from wootz.engine.sampler import pick, probability_weights, sample
from wootz.engine.scheduler import Chunk
from wootz.engine.sequence import Sequence
from wootz.engine.speculation.draft import Draft
from wootz.engine.speculation.verify import DRAFT_STREAM, random_number
from wootz.models.context import RecurrentState
from wootz.models.run import move_slots


class DraftModel:
    depth = None

    def __init__(self, model: Model, target: Model) -> None:
        """Both tokenizers are known to be the same. Raises `ConfigError` for a draft that cannot serve ``target``."""
        if any(isinstance(spec, RecurrentState) for spec in model.cache_specs):
            raise ConfigError(
                "speculation: a draft model with recurrent layers cannot take back a token", hint="use another"
            )
        self.model, self.vocab_size = model, target.config.vocab_size
        self.longest = model.config.max_position_embeddings
        self.cost = model.num_parameters / target.num_parameters
        self.cache_specs = list(model.cache_specs)
        self._num_computed: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()
        """Places whose keys and values are here; unknown sequences share those of others."""

    def attach(self, model: Model, cache: PagedCache, first_slot: int) -> None:
        move_slots(self.model.modules(), first_slot)
        fuse(self.model, cache, self.model.config.max_position_embeddings)
        self.runner = Runner(self.model, cache, AdapterCache(self.model, 1, lambda: ()))
        self.runner.scores_prompts = False

    def observe(self, chunks: list[Chunk], hidden_TD: Tensor, context: PagedContext) -> None:
        prompts = [
            chunk
            for chunk in chunks
            if (chunk.num_tokens > 1 or not chunk.samples or not chunk.sequence.num_output_tokens)
            and chunk.end <= self.longest
            and chunk.sequence.request.adapter is None
        ]
        if prompts:
            self.runner.run(prompts)
            self._num_computed.update({chunk.sequence: chunk.end for chunk in prompts})

    def propose(self, sequences: list[Sequence], limits: list[int]) -> list[Draft | None]:
        writing = {
            _shadow(sequence): min(limit, self.longest - len(sequence.token_ids))
            for sequence, limit in zip(sequences, limits, strict=True)
        }
        drawn_from: dict[Sequence, list[Tensor]] = {shadow: [] for shadow in writing}
        for shadow, sequence in zip(writing, sequences, strict=True):
            known = self._num_computed.get(sequence, sequence.num_computed)
            shadow.num_computed = min(known, sequence.num_computed)
        for step in range(max(writing.values())):
            going = [shadow for shadow, limit in writing.items() if step < limit]
            logits_SV = self.runner.run([Chunk(s, s.num_computed, s.num_remaining) for s in going]).rows_SV
            chosen = sample(self._in_vocabulary(logits_SV), going, partial(self._draw, drawn_from))
            for shadow, sampled in zip(going, chosen, strict=True):
                shadow.num_computed = len(shadow.token_ids)
                shadow.token_ids.append(sampled.token_id)
        for shadow, sequence in zip(writing, sequences, strict=True):
            self._num_computed[sequence] = shadow.num_computed
        return [
            Draft.chain(shadow.token_ids[-limit:], torch.stack(drawn_from[shadow]) if drawn_from[shadow] else None)
            if limit > 0
            else None
            for shadow, limit in writing.items()
        ]

    def _draw(self, drawn_from: dict[Sequence, list[Tensor]], logits_RV: Tensor, shadows: Rows[Sequence]) -> list[int]:
        weights_RV = probability_weights(logits_RV, [s.request.params for s in shadows])
        streams = [DRAFT_STREAM if s.request.params.seed is None else 0 for s in shadows]
        for row, (shadow, stream) in enumerate(zip(shadows, streams, strict=True)):
            if stream == DRAFT_STREAM:
                drawn_from[shadow].append(weights_RV[row] / weights_RV[row].sum())
        return pick(weights_RV, [random_number(s, stream) for s, stream in zip(shadows, streams, strict=True)])

    def _in_vocabulary(self, logits_SV: Tensor) -> Tensor:
        """Models of one tokenizer may pad their vocabularies differently."""
        missing = self.vocab_size - logits_SV.shape[-1]
        if missing > 0:
            return torch.nn.functional.pad(logits_SV, (0, missing), value=float("-inf"))
        return logits_SV[:, : self.vocab_size]


def _shadow(sequence: Sequence) -> Sequence:
    """The same answer to the sampler and the cache, whose text can run ahead."""
    shadow = copy.copy(sequence)
    shadow.token_ids = list(sequence.token_ids)
    return shadow
