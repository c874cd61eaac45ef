"""A cascade: ask the cheap model, and the next one only where its answer is not sure enough.

Models stand from cheap to dear. An answer whose confidence reaches the model's threshold is the answer; else the next
is asked; the last one's is final, and streams as it comes. An earlier one can't stream: it is read to its end before
anybody knows whether it will do, so what a cascade saves in money it may cost in time to the first token.

What a rejected answer cost, it cost. Each model writes its own attempts on the journey (those of `[routes]` do), and
the bill is their sum; the usage that the user is told is that of the answer they got.

Source: L. Chen, M. Zaharia, J. Zou, *FrugalGPT*, 2023 (arXiv:2305.05176).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from wootz.core import LanguageModel, UnsupportedError, WootzError
from wootz.core.wire import ChatChunk, ChatRequest
from wootz.providers.confidence import Signal


class Cascade(LanguageModel):
    """``thresholds`` has one number for each model but the last; ``calls`` is how often the signal asks a model for one
    judgement (`calls_of`). Models are closed by whoever opened them."""

    provider = "cascade"

    def __init__(
        self,
        name: str,
        models: Sequence[LanguageModel],
        thresholds: Sequence[float],
        signal: Signal,
        *,
        calls: int = 1,
    ) -> None:
        self.name = name
        self.models = models
        self._cheap = list(zip(models[:-1], thresholds, strict=True))
        self._signal = signal
        self.calls = calls

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        for model, threshold in self._cheap if _can_be_judged(request) else ():
            try:
                judged = await self._signal(model, request)
            except WootzError as error:
                # A model that fails, or lacks something that was asked for, is as good as one that is not sure.
                if not (error.retryable or isinstance(error, UnsupportedError) or error.code == "outside_region"):
                    raise
                self._note(request, f'"{model.name}" failed ({error.code})')
                continue
            sure = judged.confidence >= threshold
            self._note(request, f'"{model.name}" {judged.confidence:.2f} {">=" if sure else "<"} {threshold:.2f}')
            if sure:
                for chunk in judged.chunks:
                    yield chunk
                return
        async with aclosing(self.models[-1].chat(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def count_tokens(self, request: ChatRequest) -> int:
        """By the last model, which nobody is passed on from."""
        return await self.models[-1].count_tokens(request)

    async def ready(self) -> bool:
        """Its last model answers whatever the others do."""
        return await self.models[-1].ready()

    def _note(self, request: ChatRequest, text: str) -> None:
        request.journey.notes.append(f"cascade {self.name}: {text}")


def _can_be_judged(request: ChatRequest) -> bool:
    """The signals are of one text: several answers, or calls of tools, are the last model's work."""
    return (request.n or 1) == 1 and not request.tools
