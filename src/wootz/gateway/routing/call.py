"""One attempt: a request to one deployment, held back until there is content.

Chunks without content (the role, a keep-alive) are kept, so that an endpoint which says hello and dies has said
nothing to the user. From the first content on they pass as they come, and a failure is the user's to see.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from wootz.core import UpstreamError, WootzError
from wootz.core.journey import UNDER_WAY
from wootz.core.tool_wire import ModelRequest
from wootz.core.wire import Usage
from wootz.gateway.routing.candidate import prompt_tokens
from wootz.gateway.routing.deployment import Deployment

Chunk = TypeVar("Chunk")

Ask = Callable[[Any], AsyncGenerator[Chunk, None]]
"""Of a model: its answer to the request at hand."""

GONE = "cancelled"
"""The error code of an attempt that nobody waited for any longer."""
FAULT = "internal_error"
"""That of one which ended in an exception that nobody foresaw: ours to mend, and no other model's to try."""


class Call(Generic[Chunk]):
    """`begin` it, then read its `chunks`; or `drop` it. However it ends, the attempt is on the journey, the deployment
    knows, and the work behind it is stopped."""

    def __init__(self, deployment: Deployment, ask: Ask[Chunk], request: ModelRequest) -> None:
        self.deployment = deployment
        self.attempt = deployment.begin(request.journey)
        self._request = request
        try:
            self._stream = ask(deployment.model)
        except WootzError as error:  # Refusals of what a model cannot do come before there is a stream.
            self._stream = _refusing(error)
        self._held: list[Chunk] = []
        self._ended = self._judged = False
        self.stopped: Call[Chunk] | None = None
        """One that this one was quicker than; it gets its part of the bill."""

    async def begin(self, seconds: float) -> None:
        """Until the first content is there. Raises what the model raises, and `UpstreamError` when it takes longer
        than ``seconds``; then this attempt is over, and nothing of it was passed on."""
        UNDER_WAY.set(self.attempt)
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                async for chunk in self._stream:
                    self._held.append(chunk)
                    if has_content(chunk):
                        break
                else:
                    raise UpstreamError(f'model "{self.deployment.name}": no answer came', code="incomplete_answer")
        except WootzError as error:
            await self._end(error)
            raise
        except BaseException as error:
            if not (isinstance(error, TimeoutError) and limit.expired()):
                if not isinstance(error, Exception):  # The model reads, also for a client that left.
                    self.attempt.prompt_tokens = prompt_tokens(self._request)
                await self.drop(FAULT if isinstance(error, Exception) else GONE)
                raise
            name = self.deployment.name
            late = UpstreamError(f'model "{name}": nothing came for {seconds:.3g} s', code="first_token_timeout")
            await self._end(late)
            raise late from error
        self.attempt.first_token = self._request.journey.now
        self._judged = True
        self.deployment.breaker.succeeded()
        self.deployment.latency.measure_first_token(self.attempt.first_token - self.attempt.start)

    async def chunks(self, deadline: float | None) -> AsyncGenerator[Chunk, None]:
        """All of them; ``deadline`` is in the event loop's time. Raises what the model raises."""
        num_parts = 0
        try:
            try:
                async with aclosing(self._all(deadline)) as chunks:
                    async for chunk in chunks:
                        if (usage := getattr(chunk, "usage", None)) is not None:
                            # The last one. All is said before it goes on, as the record is written when it passes.
                            self._count(usage)
                            await self._end(None)
                            yield chunk
                            return
                        if has_content(chunk):
                            num_parts += getattr(chunk, "num_parts", 1)
                        yield chunk
            except TimeoutError as error:
                raise UpstreamError("the answer took too long as a whole", code="total_timeout") from error
            raise UpstreamError(f'model "{self.deployment.name}": the answer broke off', code="incomplete_answer")
        except WootzError as error:
            self._count(Usage.count(prompt_tokens(self._request), num_parts))
            await self._end(error)
            raise
        except BaseException as error:
            if not self._ended:  # Nobody tells the usage of half an answer; its parts are nearly its tokens.
                self._count(Usage.count(prompt_tokens(self._request), num_parts))
                await self.drop(FAULT if isinstance(error, Exception) else GONE)
            raise

    async def drop(self, code: str = GONE) -> None:
        """Nobody waits for it any longer."""
        if not self._ended:
            self.attempt.error_code = code
            await self._end(None)

    async def _all(self, deadline: float | None) -> AsyncGenerator[Chunk, None]:
        """Raises `TimeoutError`. A timer for each chunk, as no time-out may last while the reader has control."""
        for chunk in self._held:
            yield chunk
        if deadline is None:
            async for chunk in self._stream:
                yield chunk
            return
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(self._stream)
            except StopAsyncIteration:
                return
            yield chunk

    def _count(self, usage: Usage) -> None:
        attempt = self.attempt
        attempt.prompt_tokens, attempt.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        attempt.cached_tokens, attempt.cache_write_tokens = usage.cached_tokens, usage.cache_write_tokens
        if self.stopped is not None:
            self.stopped.attempt.prompt_tokens = usage.prompt_tokens

    async def _end(self, error: WootzError | None) -> None:
        if self._ended:
            return
        self._ended = True
        attempt, deployment = self.attempt, self.deployment
        attempt.end = self._request.journey.now
        deployment.in_flight -= 1
        if error is not None:
            attempt.error_code = error.code or "error"
            deployment.failed(error)
        elif not self._judged:
            deployment.breaker.left()
        elif attempt.first_token is not None and attempt.error_code is None and attempt.completion_tokens > 1:
            seconds = (attempt.end - attempt.first_token) / (attempt.completion_tokens - 1)
            deployment.latency.measure_inter_token(seconds)
        await self._stream.aclose()


def has_content(chunk: Any) -> bool:
    """Whether something of the answer is in it, its end included; not the role alone. Whole answers are content."""
    choices = getattr(chunk, "choices", None)
    if not choices:
        return getattr(chunk, "usage", None) is not None
    for choice in choices:
        if choice.finish_reason:
            return True
        delta = getattr(choice, "delta", None)
        if choice.text if delta is None else delta.content or delta.reasoning_content or delta.tool_calls:
            return True
    return False


async def _refusing(error: WootzError) -> AsyncGenerator[Any, None]:
    raise error
    yield
