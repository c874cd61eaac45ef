"""A route: a `LanguageModel` under a name of its own, made of others.

For each request a policy puts its targets in order, and they are asked one after the other until one has content:

- *In a round* each is asked once, and a failure moves on to the next at once. Who rests (an open breaker, a
  Retry-After that is not over) is passed over.
- *Between rounds* there is a wait, jittered and at least until somebody is available again. A deployment's retry
  budget says whether it may be asked again.
- *From the first content on* there is no other model: a failure is raised, and an answer is never begun twice.

What a target can't do at all (a 400 for a parameter it lacks, a prompt too long for it) is asked of the next one; every
other 400 is the user's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from wootz.core import LanguageModel, RateLimitError, UnavailableError, UnsupportedError, WootzError
from wootz.core.sections import RouteConfig
from wootz.core.tool_wire import ModelRequest
from wootz.core.wire import (
    ChatChunk,
    ChatRequest,
    Completion,
    CompletionRequest,
    EmbeddingRequest,
    EmbeddingResponse,
    RerankRequest,
    RerankResponse,
)
from wootz.gateway.identity.residency import check, may_reach
from wootz.gateway.routing.backoff import jittered
from wootz.gateway.routing.call import Ask, Call
from wootz.gateway.routing.candidate import Candidate
from wootz.gateway.routing.deployment import Deployment
from wootz.gateway.routing.hedge import in_a_task, race
from wootz.gateway.routing.policies import policy_of
from wootz.gateway.routing.policies.learned import Look
from wootz.telemetry.prices import Price

Chunk = TypeVar("Chunk")

NOT_REPEATED = ("upstream_refused", "upstream_tls", "upstream_redirect", "first_token_timeout")
"""Failures that the same deployment would most likely give again, at the price of another wait or another 401."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A deployment as one route has it."""

    deployment: Deployment
    weight: int = 1
    region: str | None = None
    tags: Sequence[str] = ()
    capacity: int | None = None
    price: Callable[[int], Price | None] = lambda num_prompt_tokens: None

    def candidate(self) -> Candidate:
        deployment = self.deployment
        return Candidate(
            name=deployment.name,
            weight=self.weight,
            region=self.region,
            tags=self.tags,
            capacity=self.capacity,
            price=self.price,
            in_flight=deployment.in_flight,
            first_token=deployment.latency.first_token,
            inter_token=deployment.latency.inter_token,
        )


class Route(LanguageModel):
    """Members are closed by whoever opened them."""

    provider = "route"

    def __init__(
        self,
        name: str,
        config: RouteConfig,
        targets: Sequence[Target],
        fallbacks: Sequence[Deployment] = (),
        *,
        look: Look | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Random | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.targets = {target.deployment.name: target for target in targets}
        self.fallbacks = fallbacks
        self._random = random or Random()
        self._policy = policy_of(name, config, self._random)
        self._look = look
        self._sleep = sleep

    @property
    def deployments(self) -> list[Deployment]:
        return [target.deployment for target in self.targets.values()] + [*self.fallbacks]

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        return self._stream(request, lambda model: model.chat(request))

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        return self._stream(request, lambda model: model.complete(request))

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        return await self._whole(request, lambda model: model.embed(request))

    async def rerank(self, request: RerankRequest) -> RerankResponse:
        return await self._whole(request, lambda model: model.rerank(request))

    async def count_tokens(self, request: ChatRequest) -> int:
        """By the first in order that can: models read the same text as different numbers of tokens."""
        error: WootzError | None = None
        for deployment in self._order(request, first=False):
            if deployment.available:
                try:
                    return await deployment.model.count_tokens(request)
                except WootzError as failure:
                    if not _passes_on(failure):
                        raise
                    error = failure
        raise error or self._nobody()

    async def ready(self) -> bool:
        """Whether any of them is there. An open breaker does not count: a balancer would take out every replica
        at once for an endpoint's failure, and with it all other models."""
        return any(await asyncio.gather(*(deployment.model.ready() for deployment in self.deployments)))

    # --- one request ----------------------------------------------------------------------------------------------

    async def _whole(self, request: ModelRequest, ask: Callable[[LanguageModel], Awaitable[Chunk]]) -> Chunk:
        async def answer(model: LanguageModel) -> AsyncGenerator[Chunk, None]:
            yield await ask(model)

        async with aclosing(self._stream(request, answer)) as answers:
            whole = [chunk async for chunk in answers]
        return whole[0]

    async def _stream(self, request: ModelRequest, ask: Ask[Chunk]) -> AsyncGenerator[Chunk, None]:
        total = self.config.total_seconds
        deadline = None if total is None else asyncio.get_running_loop().time() + total
        if self.config.hedge:
            inner = ask
            ask = lambda model: in_a_task(inner(model))  # noqa: E731
        call = await self._begin(request, ask, deadline)
        async with aclosing(call.chunks(deadline)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _begin(self, request: ModelRequest, ask: Ask[Chunk], deadline: float | None) -> Call[Chunk]:
        """The call that has content."""
        error: WootzError | None = None
        hopeless = set[str]()
        if self._look is not None:
            await self._look(request)
        for round in range(1 + self.config.retries):
            waiting = [one for one in self._order(request, first=round == 0) if one.name not in hopeless]
            if not waiting or (round and not await self._wait(round, waiting, deadline, request)):
                break
            while waiting:
                deployment = waiting.pop(0)
                if not _admits(deployment, repeated=round > 0):
                    continue
                try:
                    return await self._attempt(deployment, waiting, request, ask, deadline)
                except WootzError as failure:
                    if not _passes_on(failure):
                        raise
                    error = failure
                    if not failure.retryable or failure.code in NOT_REPEATED:
                        hopeless.add(deployment.name)
        raise error or self._nobody()

    async def _attempt(
        self,
        deployment: Deployment,
        others: list[Deployment],
        request: ModelRequest,
        ask: Ask[Chunk],
        deadline: float | None,
    ) -> Call[Chunk]:
        seconds = self.config.first_token_seconds
        if deadline is not None:
            seconds = min(seconds, max(0.0, deadline - asyncio.get_running_loop().time()))
        call = Call(deployment, ask, request)
        after = deployment.latency.p95_first_token if self.config.hedge else None
        if after is None:
            await call.begin(seconds)
            return call

        def second() -> Call[Chunk] | None:
            """Who is asked here is not asked again in this round."""
            while others:
                if _admits(other := others.pop(0), repeated=True):
                    request.journey.notes.append(f'route {self.name}: hedged with "{other.name}" after {after:.3g} s')
                    return Call(other, ask, request)
            return None

        return await race(call, after, second, seconds)

    def _order(self, request: ModelRequest, *, first: bool) -> list[Deployment]:
        candidates = self._policy([target.candidate() for target in self.targets.values()], request)
        ordered = [self.targets[one.name].deployment for one in candidates] + [*self.fallbacks]
        allowed = [one for one in ordered if one.composed or may_reach(request.journey, one.name, one.region)]
        if ordered and not allowed:
            check(request.journey, ordered[0].name, ordered[0].region)
        if first and len(self.targets) > 1:
            chosen = f'"{allowed[0].name}" first of {len(candidates)}'
            outside = f", {len(ordered) - len(allowed)} are out of its bounds" if len(allowed) < len(ordered) else ""
            request.journey.notes.append(f"route {self.name}: {self.config.policy} puts {chosen}{outside}")
        return allowed

    async def _wait(
        self, round: int, waiting: Sequence[Deployment], deadline: float | None, request: ModelRequest
    ) -> bool:
        """Until it is worth trying again; False where that would be too long."""
        seconds = jittered(round, self._random) + min(deployment.available_in for deployment in waiting)
        left = self.config.max_wait_seconds
        if deadline is not None:
            left = min(left, deadline - asyncio.get_running_loop().time())
        if seconds > left:
            return False
        request.journey.notes.append(f"route {self.name}: waited {seconds:.3g} s before trying again")
        await self._sleep(seconds)
        return True

    def _nobody(self) -> WootzError:
        """Nobody could even be asked."""
        soonest = min(deployment.available_in for deployment in self.deployments)
        message = f'no model of "{self.name}" can be asked now'
        if all(deployment.limited for deployment in self.deployments):
            return RateLimitError(message, retry_after=soonest, code="upstream_rate_limit")
        return UnavailableError(message, hint=f"try again in {soonest:.0f} s")


def _admits(deployment: Deployment, *, repeated: bool) -> bool:
    """Whether the deployment may be asked; ``repeated``: at the cost of its retry budget."""
    if not deployment.available or (repeated and not deployment.retries.withdraw()):
        return False
    if not repeated:
        deployment.retries.deposit()
    return deployment.admit()


def _passes_on(failure: WootzError) -> bool:
    """Whether another model may succeed where this one failed."""
    elsewhere = failure.code in ("context_length_exceeded", "outside_region")
    return failure.retryable or isinstance(failure, UnsupportedError) or elsewhere
