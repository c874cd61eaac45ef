"""What goes into an engine and what comes out of it, as its Python callers see them."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

from wootz.core import WootzError
from wootz.engine.protocol import Failed, Finished, Output, TokenLogprob, ToolCallDelta
from wootz.engine.sequence import Request

Prompt = str | Many[int] | Many[dict[str, Any]]
"""Text, token ids, or chat messages (rendered by the model's chat template)."""

Event = tuple[Request, Output | Finished | Failed]


@dataclass
class Choice:
    """One answer. ``token_ids`` and ``logprobs`` hold every sampled token, also the one that ended it."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    score: float | None = None
    """Of beam search."""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    """In pieces, as they came."""
    guarantee: str | None = None


@dataclass
class Generation:
    """All choices of one prompt; the first one's fields can be read off directly."""

    prompt_token_ids: list[int]
    choices: list[Choice]
    cached_tokens: int = 0
    """Of the prompt, found in the cache."""
    prompt_logprobs: list[TokenLogprob] | None = None
    """Of every prompt token after those before it; the first is given, and has 0."""

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        return self.choices[0].logprobs

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    def add(self, event: Output | Finished | Failed) -> None:
        if isinstance(event, Failed):
            raise WootzError(event.message)
        if isinstance(event, Finished):
            self.cached_tokens = event.cached_tokens
            return
        choice = self.choices[event.index]
        choice.text += event.text
        choice.token_ids += event.token_ids
        choice.finish_reason, choice.stop_reason = event.finish_reason, event.stop_reason
        choice.score, self.prompt_logprobs = event.score, event.prompt_logprobs or self.prompt_logprobs
        choice.reasoning += event.reasoning
        choice.tool_calls += event.tool_calls
        choice.guarantee = event.guarantee
        if event.logprobs is not None:
            choice.logprobs = (choice.logprobs or []) + event.logprobs
