"""How much a step may compute, so that running answers do not wait too long for their next token.

`max_step_tokens` bounds a step in tokens. ``max_inter_token_latency_ms`` bounds it in time: a step that computes
prompts beside running answers makes those wait, and how long depends on the machine, the model and the lengths. So
it is measured: after each such step the budget is scaled by target / measured, cut at once and grown slowly (a
proportional controller on the logarithm of the budget). While nobody answers nobody waits, and all of it is used.

What steps cost also tells what it would cost to compute a preempted sequence again.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wootz.engine.scheduler import Chunk

FEWEST_TOKENS = 16
"""Prompts go on, however slow the machine."""
MOST_GROWTH, MOST_CUT = 1.1, 0.5
"""By which one step may change the budget: patient upwards, quick downwards."""
AIM = 0.9
"""Share of the target that is aimed at, for the steps that come out longer than the last."""
RECENT = 0.1
"""Weight of the newest step in a running mean."""


class Pace:
    def __init__(self, max_step_tokens: int, max_inter_token_latency_ms: float | None = None) -> None:
        self.max_step_tokens = max_step_tokens
        self.target_seconds = None if max_inter_token_latency_ms is None else max_inter_token_latency_ms / 1000
        self.prefill_tokens = float(max_step_tokens)
        """Prompt tokens that a step may compute beside running answers."""
        self.seconds_per_token: float | None = None
        """Of a prompt; None until one was computed."""

    def budget(self, num_decoding: int) -> int:
        """Tokens for the next step, in which ``num_decoding`` answers go on."""
        if self.target_seconds is None or not num_decoding:
            return self.max_step_tokens
        return min(self.max_step_tokens, num_decoding + max(FEWEST_TOKENS, int(self.prefill_tokens)))

    def observe(self, chunks: Many[Chunk], seconds: float) -> None:
        """A step took so long."""
        answering = [chunk for chunk in chunks if chunk.start >= len(chunk.sequence.request.prompt_token_ids)]
        num_tokens = sum(chunk.num_rows for chunk in chunks)  # drafted ones take their time too
        prefill_tokens = num_tokens - sum(chunk.num_rows for chunk in answering)
        if 2 * prefill_tokens > num_tokens:
            each = seconds / num_tokens
            before = each if self.seconds_per_token is None else self.seconds_per_token
            self.seconds_per_token = before + RECENT * (each - before)
        if self.target_seconds is None or not prefill_tokens or not answering:
            return
        scale = min(max(AIM * self.target_seconds / max(seconds, 1e-9), MOST_CUT), MOST_GROWTH)
        if scale < 1:
            self.prefill_tokens = max(scale * min(prefill_tokens, self.prefill_tokens), FEWEST_TOKENS)
        elif 2 * prefill_tokens >= self.prefill_tokens:  # that a small prompt was quick says nothing about large ones
            self.prefill_tokens = min(scale * self.prefill_tokens, self.max_step_tokens)
