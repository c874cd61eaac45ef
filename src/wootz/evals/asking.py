"""Ask a `LanguageModel` one question, greedily unless told otherwise, and time it as a client sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from wootz.core import LanguageModel, RateLimitError, UpstreamError, WootzError
from wootz.core.wire import ChatMessage, ChatRequest, CompletionChoice, CompletionRequest, Usage

ATTEMPTS = 4
PATIENCE_SECONDS = 1.0
"""Before the second attempt; doubled before each further one."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Times in seconds. The first token is the first chunk with text; an answer without any has none."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    time_to_first_token: float | None
    seconds: float


async def ask(
    model: LanguageModel,
    prompt: str,
    *,
    max_tokens: int,
    chat: bool = True,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Reply:
    """One answer: as a chat of one user message, or as the plain continuation of ``prompt``.

    A failure that may pass (a rate limit, an endpoint that is restarting) is tried again, four times in all; every
    other `WootzError` is the caller's.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await _ask(model, prompt, chat, {"max_tokens": max_tokens, "temperature": temperature, "seed": seed})
        except WootzError as error:
            if not error.retryable or attempt == ATTEMPTS:
                raise
            told = error.retry_after if isinstance(error, RateLimitError) else 0.0
            await asyncio.sleep(max(told, PATIENCE_SECONDS * 2 ** (attempt - 1)))
    raise AssertionError("unreachable")


async def _ask(model: LanguageModel, prompt: str, chat: bool, sampling: dict[str, Any]) -> Reply:
    text, first, usage = "", None, None
    start = time.perf_counter()
    async with aclosing(_stream(model, prompt, chat, sampling)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Usage):
                usage = piece
                continue
            if piece and first is None:
                first = time.perf_counter() - start
            text += piece
    if usage is None:
        raise UpstreamError("the answer broke off before its end", hint="try again")
    return Reply(
        text=text,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        time_to_first_token=first,
        seconds=time.perf_counter() - start,
    )


async def _stream(
    model: LanguageModel, prompt: str, chat: bool, sampling: dict[str, Any]
) -> AsyncGenerator[str | Usage, None]:
    """The answer's texts as they come, and its `Usage`."""
    if chat:
        message = ChatMessage(role="user", content=prompt)
        stream = model.chat(ChatRequest(model=model.name, messages=[message], stream=True, **sampling))
    else:
        stream = model.complete(CompletionRequest(model=model.name, prompt=prompt, stream=True, **sampling))
    async with aclosing(stream) as chunks:
        async for chunk in chunks:
            for choice in chunk.choices:
                yield choice.text if isinstance(choice, CompletionChoice) else choice.delta.content or ""
            if chunk.usage is not None:
                yield chunk.usage
