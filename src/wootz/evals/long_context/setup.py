"""What all cases of a run share."""

from __future__ import annotations

from dataclasses import dataclass

from wootz.evals.long_context.case import AS_IT_IS
from wootz.evals.long_context.fitting import CountTokens
from wootz.evals.long_context.haystack import HaystackMaker, essays

SHARE_FOR_ANSWER = 4
"""An answer may take at most one token in so many: a length of 256 leaves 192 for the prompt."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """``haystack`` is used wherever a task doesn't prescribe its own. ``answer_tokens`` replaces the tasks' own limits,
    for models that think before they answer. Without ``chat`` a prompt is continued as it is, and opens the answer
    itself.
    """

    count: CountTokens
    seed: int = 0
    haystack: HaystackMaker = essays
    answer_tokens: int | None = None
    chat: bool = True

    def answer_room(self, length: int, tokens: int) -> int:
        """How long an answer may get in a window of ``length`` tokens that holds the prompt too; a task needs
        ``tokens``."""
        if self.answer_tokens is not None:
            return self.answer_tokens
        return tokens if length == AS_IT_IS else max(1, min(tokens, length // SHARE_FOR_ANSWER))

    def opening(self, text: str) -> str:
        """The beginning of the answer, for a model that continues plain text; a chat gets none."""
        return "" if self.chat else f"\n\nAnswer: {text}".rstrip()
