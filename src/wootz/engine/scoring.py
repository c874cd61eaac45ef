"""Scoring given text: the log-probability of every prompt token after those before it (``prompt_logprobs``).

Every chunk of a prompt has the hidden states of its tokens anyway. For a request that wants them scored, they are
turned into logits too, a few at a time, and only the asked numbers are kept; so a prompt may be cut into chunks,
batched and preempted as always. What the prefix cache already holds would not be computed, so such a prompt shares
nothing until it is scored. It is published for others like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wootz.engine.scheduler import Chunk

ROWS_AT_ONCE = 128
"""Whose logits over the whole vocabulary are in memory together."""


@dataclass(eq=False)
class PromptScores:
    """Of one prompt: for each token but the first its log-probability, and the ``num_top`` likeliest in its place."""

    token_ids: list[int]
    num_top: int
    found: list[tuple[float, list[tuple[int, float]]] | None] = field(init=False)

    def __post_init__(self) -> None:
        self.found = [None] * (len(self.token_ids) - 1)

    @property
    def is_complete(self) -> bool:
        return None not in self.found

    def add(self, start: int, logits_TV: Tensor) -> None:
        """From the logits of the prompt's tokens from ``start`` on, each of which says what the next one is."""
        logprobs_TV = logits_TV.log_softmax(-1)
        next_T1 = torch.tensor(self.token_ids[start + 1 :][: len(logits_TV)], device=logits_TV.device).unsqueeze(1)
        values, ids = logprobs_TV.topk(min(self.num_top, logprobs_TV.shape[-1]))
        rows = zip(logprobs_TV.gather(1, next_T1).squeeze(1).tolist(), ids.tolist(), values.tolist(), strict=True)
        for place, (logprob, top_ids, top_values) in enumerate(rows, start):
            self.found[place] = logprob, list(zip(top_ids, top_values, strict=True))


def score_prompts(chunks: Sequence[Chunk], hidden_TD: Tensor, unembed: Callable[[Tensor], Tensor]) -> None:
    """What this step computed of prompts that are to be scored; ``hidden_TD`` is the step's."""
    row = 0
    for chunk in chunks:
        scores = chunk.sequence.request.prompt_scores
        if scores is not None and not scores.is_complete:
            end = min(chunk.end, len(scores.token_ids) - 1)  # the prompt's last token tells of none of its own
            for start in range(chunk.start, end, ROWS_AT_ONCE):
                first, number = row + start - chunk.start, min(ROWS_AT_ONCE, end - start)
                scores.add(start, unembed(hidden_TD[first : first + number]))
        row += chunk.num_rows
