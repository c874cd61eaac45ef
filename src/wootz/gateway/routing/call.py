"""One attempt: a request to one deployment, held back until there is content.

Chunks without content (the role, a keep-alive) are kept, so that an endpoint which says hello and dies has said
nothing to the user. From the first content on they pass as they come, and a failure is the user's to see.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, TypeVar

from wootz.core import UpstreamError, WootzError
from wootz.core.journey import Journey
from wootz.core.wire import Usage
from wootz.gateway.routing.deployment import Deployment

Chunk = TypeVar("Chunk")

Ask = Callable[[Any], AsyncGenerator[Chunk, None]]
"""Of a model: its answer to the request at hand."""

GONE = "cancelled"
"""The error code of an attempt that nobody waited for any longer."""


class Call(Generic[Chunk]):
    """`begin` it, then read its `chunks`; or `drop` it. However it ends, the attempt is on the journey, the deployment
    knows, and the work behind it is stopped."""

    def __init__(self, deployment: Deployment, ask: Ask[Chunk], journey: Journey) -> None:
        self.deployment = deployment
        self.attempt = deployment.begin(journey)
        self._journey = journey
        try:
            self._stream = ask(deployment.model)
        except WootzError as error:  # Refusals of what a model cannot do come before there is a stream.
            self._stream = _refusing(error)
        self._held: list[Chunk] = []
        self._ended = self._judged = False

    async def begin(self, seconds: float) -> None:
        """Until the first content is there. Raises what the model raises, and `UpstreamError` when it takes longer
        than ``seconds``; then this attempt is over, and nothing of it was passed on."""
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                async for chunk in self._stream:
                    self._held.append(chunk)
                    if has_content(chunk):
                        break
                else:
                    raise UpstreamError(f'model "{self.deployment.name}": no answer came', code="incomplete_answer")
        except TimeoutError as error:
            if not limit.expired():
                raise
            name = self.deployment.name
            late = UpstreamError(f'model "{name}": nothing came for {seconds:.3g} s', code="first_token_timeout")
            await self._end(late)
            raise late from error
        except WootzError as error:
            await self._end(error)
            raise
        except BaseException:
            await self.drop()
            raise
        self.attempt.first_token = self._journey.now
        self._judged = True
        self.deployment.breaker.succeeded()
        self.deployment.latency.measure_first_token(self.attempt.first_token - self.attempt.start)

    async def chunks(self, deadline: float | None) -> AsyncGenerator[Chunk, None]:
        """All of them; ``deadline`` is in the event loop's time. Raises what the model raises."""
        num_parts, usage = 0, None
        try:
            for chunk in self._held:
                num_parts += has_content(chunk)
                usage = getattr(chunk, "usage", None) or usage
                yield chunk
            try:
                async for chunk in self._stream if deadline is None else _until(deadline, self._stream):
                    num_parts += 1
                    usage = getattr(chunk, "usage", None) or usage
                    yield chunk
            except TimeoutError as error:
                raise UpstreamError("the answer took too long as a whole", code="total_timeout") from error
            if usage is None:
                raise UpstreamError(f'model "{self.deployment.name}": the answer broke off', code="incomplete_answer")
        except WootzError as error:
            self._count(usage, num_parts)
            await self._end(error)
            raise
        except BaseException:
            self._count(usage, num_parts)
            await self.drop()
            raise
        self._count(usage, num_parts)
        await self._end(None)

    async def drop(self) -> None:
        """Nobody waits for it any longer."""
        if not self._ended:
            self.attempt.error_code = self.attempt.error_code or GONE
            await self._end(None)

    def _count(self, usage: Usage | None, num_parts: int) -> None:
        """Nobody tells the usage of half an answer; its parts are nearly its tokens."""
        attempt = self.attempt
        attempt.completion_tokens = usage.completion_tokens if usage else num_parts
        if usage is not None:
            attempt.prompt_tokens = usage.prompt_tokens
            attempt.cached_tokens, attempt.cache_write_tokens = usage.cached_tokens, usage.cache_write_tokens

    async def _end(self, error: WootzError | None) -> None:
        if self._ended:
            return
        self._ended = True
        attempt, deployment = self.attempt, self.deployment
        attempt.end = self._journey.now
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


async def _until(deadline: float, stream: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Chunk, None]:
    """Raises `TimeoutError`. A timer for each chunk, as no time-out may last while the reader has control."""
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        yield chunk
