"""The caches of the gateway, between the hold and the route: exact, then equal requests under way, then by meaning.

A hit is a stream of the chunks that were kept. Its tokens are told as they were answered, and cost
nothing. What happened is on the journey, from where the header ``x-wootz-cache`` and the record take it.

Nothing here can fail a request: a store out of reach or an embedder that errs is a miss, with a note on the journey.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from wootz.core import Config, LanguageModel, resolve_secret
from wootz.core.cache_control import CacheControl, cache_control
from wootz.core.secrets import SECRET_SCHEMES
from wootz.core.sections import CachesConfig
from wootz.core.wire import ChatChunk, ChatRequest, Completion, SamplingFields
from wootz.gateway.caches.eligible import (
    decode,
    depends_on_more,
    encode,
    is_deterministic,
    is_plain_question,
    is_whole,
)
from wootz.gateway.caches.flight import Flight
from wootz.gateway.caches.keys import exact_key, fingerprint, owner_of, semantic_partition, user_of
from wootz.gateway.caches.redis_store import RedisStore
from wootz.gateway.caches.store import MemoryStore, Store
from wootz.gateway.caches.texts import TextCache
from wootz.gateway.keys import Key

if TYPE_CHECKING:
    from wootz.gateway.caches.semantic import Question, SemanticCache

log = logging.getLogger(__name__)

Chunk = TypeVar("Chunk", ChatChunk, Completion)
Asked = TypeVar("Asked", bound=SamplingFields)


class Caches:
    """``models`` is the gateway's own table, in which the embedder is looked up when it is needed."""

    def __init__(self, config: Config, models: Mapping[str, LanguageModel], store: Store | None = None) -> None:
        self.exact, self.meaning = config.caches.exact, config.caches.semantic
        self.store = store or _open_store(config.caches)
        self.semantic: SemanticCache | None = None
        if self.meaning.models:
            from wootz.gateway.caches.semantic import SemanticCache  # Needs NumPy, which the gateway does not.

            self.semantic = SemanticCache(self.meaning, models)
        self.counts: Counter[tuple[str, str]] = Counter()
        """Requests by model and what their caches did."""
        self._defaults = {name: model.sampling for name, model in config.models.items() if model.is_local}
        self._fingerprint = fingerprint(config)
        self._flights: dict[bytes, Flight[Any, Any]] = {}
        self._num_purges = 0
        self.texts = TextCache(self.exact, self.store, self._fingerprint, self._count, epoch=lambda: self._num_purges)

    def chunks(
        self,
        key: Key | None,
        request: Asked,
        request_id: str,
        chunk_type: type[Chunk],
        ask: Callable[[Asked], AsyncGenerator[Chunk, None]],
    ) -> AsyncGenerator[Chunk, None]:
        """The answer to ``request``, from a cache or by ``ask``."""
        by_meaning = self.semantic if request.model in self.meaning.models else None
        if not (self.exact.enabled or by_meaning):
            return ask(request)
        control = cache_control(request.journey.cache_control, request.cache)
        sampled = not (request.model in self.exact.sampled_models or self._is_deterministic(request))
        exact = self.exact.enabled and not sampled
        if by_meaning and not is_plain_question(request, self.meaning.max_chars):
            by_meaning = None
        reason = (
            "the request asks for no-store" if control.no_store
            else f"the answer depends on {more}" if (more := depends_on_more(request))
            else "the answer is sampled" if not (exact or by_meaning)
            else None
        )  # fmt: skip
        if reason:
            request.journey.cache = "bypass"
            request.journey.notes.append(f"caches: bypassed, {reason}")
            self.counts[request.model, "bypass"] += 1
            return ask(request)
        return self._cached(key, request, request_id, chunk_type, ask, control, exact, by_meaning)

    async def _cached(
        self,
        key: Key | None,
        request: Asked,
        request_id: str,
        chunk_type: type[Chunk],
        ask: Callable[[Asked], AsyncGenerator[Chunk, None]],
        control: CacheControl,
        exact: bool,
        by_meaning: SemanticCache | None,
    ) -> AsyncGenerator[Chunk, None]:
        journey, question = request.journey, None
        owner, models = owner_of(key, journey.tenant), self._fingerprint + journey.variant
        place = exact_key(owner, models, request)
        kept: bytes | None = None
        if exact and not control.no_cache:
            found = await self.store.get(place)
            if found is not None and _is_fresh(found.age, control):
                journey.cache, journey.cache_age, kept = "exact", found.age, found.body
        if kept is None and by_meaning and isinstance(request, ChatRequest) and place not in self._flights:
            partition = semantic_partition(owner, models, request)
            question = await by_meaning.question(partition, request)
            if question is not None and not control.no_cache:
                hit = by_meaning.find(question, request_id)
                if hit is not None and _is_fresh(hit.age, control):
                    journey.cache, journey.cache_age, kept = "semantic", hit.age, hit.body
                    journey.notes.append(f"caches: by meaning, cosine {hit.cosine:.4f}")
        if kept is not None:
            self.counts[request.model, journey.cache] += 1
            for chunk in decode(kept, chunk_type):
                yield chunk
            return

        num_purges = self._num_purges

        async def landed(chunks: list[Chunk]) -> None:
            if is_whole(chunks, request) and num_purges == self._num_purges:
                await self._keep(request, place if exact else None, question, chunks, control.ttl)

        flight = None if control.no_cache or not exact else self._flights.get(place)
        if flight is None or flight.given_up:
            flight = Flight(request, ask, landed)
            if exact and not control.no_cache:
                self._flights[place] = flight
                flight.when_over(lambda: self._flights.get(place) is flight and self._flights.pop(place))
        riding = flight.ride(journey)
        try:
            async for chunk in riding:
                yield chunk
        finally:
            await riding.aclose()
            self.counts[request.model, journey.cache] += 1

    async def _keep(
        self,
        request: SamplingFields,
        place: bytes | None,
        question: Question | None,
        chunks: list[Any],
        ttl: float | None,
    ) -> None:
        body = encode(chunks)
        if len(body) > self.exact.max_entry_bytes:
            return
        if place is not None:
            seconds = min(ttl or self.exact.ttl_seconds, self.exact.ttl_seconds)
            await self.store.put(
                place, body, seconds, model=request.model, tenant=request.journey.tenant, user=user_of(request)
            )
        if question is not None and self.semantic is not None:
            seconds = min(ttl or self.meaning.ttl_seconds, self.meaning.ttl_seconds)
            reasons = {choice.finish_reason for chunk in chunks for choice in chunk.choices}
            if "length" not in reasons:
                self.semantic.add(question, body, seconds)

    # --- for administrators ---------------------------------------------------------------------------------------

    async def purge(self, *, model: str | None = None, tenant: str | None = None, user: str | None = None) -> int:
        """Forget what is of all that is given, everything when nothing is; how many answers that were. A ``user`` is
        whose question an answer was first given to.

        Answers under way are not kept when they end: they may come of what the purge was for, such as old weights.
        """
        self._num_purges += 1
        self._flights.clear()
        number = await self.store.purge(model=model, tenant=tenant, user=user)
        return number + (self.semantic.purge(model=model, tenant=tenant, user=user) if self.semantic else 0)

    async def close(self) -> None:
        await self.store.close()

    def _count(self, model: str, status: str) -> None:
        self.counts[model, status] += 1

    def _is_deterministic(self, request: SamplingFields) -> bool:
        return is_deterministic(request, self._defaults.get(request.model))


def _open_store(config: CachesConfig) -> Store:
    if (url := config.redis) is None:
        return MemoryStore(config.exact.max_bytes)
    if url.startswith(SECRET_SCHEMES):
        url = resolve_secret(url, used_by="caches.redis")
    return RedisStore(url, config.exact.max_bytes)


def _is_fresh(age: float, control: CacheControl) -> bool:
    return control.max_age is None or age <= control.max_age
