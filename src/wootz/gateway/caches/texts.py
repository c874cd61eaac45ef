"""Embeddings and rankings that were made before, kept for each text: a batch asks only for those that are not there.

A text's vector depends on nothing beside it in the batch. Nor does a document's score where a model of ours gives it;
of a remote one we can't know (some rank a list as a whole), so there the score belongs to the whole list.

Vectors of two models mean nothing to each other. A route may fall back, so what was kept has the name of who made it;
where a batch would mix two, all of it is asked anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from wootz.core import LanguageModel
from wootz.core.cache_control import CacheControl, cache_control
from wootz.core.sections.caches import ExactCacheConfig
from wootz.core.wire import (
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    RerankDocument,
    RerankRequest,
    RerankResponse,
    RerankResult,
    Usage,
    new_id,
)
from wootz.gateway.caches.keys import owner_of, text_keys, user_of
from wootz.gateway.caches.store import Store
from wootz.gateway.keys import Key

Asked = TypeVar("Asked", EmbeddingRequest, RerankRequest)
Count = Callable[[str, str], None]
Text = str | list[int]


@dataclass(frozen=True, slots=True)
class Kept:
    model: str
    """Who made it."""
    value: dict[str, Any]


class TextCache:
    """``count`` is told of each request what happened to it; ``epoch`` changes when everything is to be forgotten."""

    def __init__(
        self, config: ExactCacheConfig, store: Store, models: str, count: Count, epoch: Callable[[], int]
    ) -> None:
        self.config, self.store = config, store
        self._models, self._count, self._epoch = models, count, epoch
        self._keeping: set[asyncio.Task[None]] = set()

    async def embed(
        self,
        key: Key | None,
        request: EmbeddingRequest,
        ask: Callable[[EmbeddingRequest], Awaitable[EmbeddingResponse]],
    ) -> EmbeddingResponse:
        """Its usage counts the texts that were computed now."""
        if (control := self._control(request)) is None:
            return await ask(request)
        texts = _texts(request.input)

        async def compute(missing: Sequence[int]) -> tuple[Usage, dict[int, Kept]]:
            part = request
            if len(missing) < len(texts):
                part = request.model_copy(update={"input": [texts[place] for place in missing]})
            made = await ask(part)
            return made.usage, {
                missing[one.index]: Kept(made.model, one.model_dump(mode="json", exclude={"index"}))
                for one in made.data
            }

        usage, kept = await self._filled(key, request, control, "embedding", texts, [], compute)
        data = [Embedding(index=place, **kept[place].value) for place in sorted(kept)]
        return EmbeddingResponse(data=data, model=_model_of(kept, request), usage=usage)

    async def rerank(
        self,
        key: Key | None,
        request: RerankRequest,
        model: LanguageModel,
        ask: Callable[[RerankRequest], Awaitable[RerankResponse]],
    ) -> RerankResponse:
        if (control := self._control(request)) is None:
            return await ask(request)
        texts = request.texts

        async def compute(missing: Sequence[int]) -> tuple[Usage, dict[int, Kept]]:
            """Scores of all that are missing: how many of them are told is this request's own affair."""
            fields = request.model_dump(exclude_unset=True, exclude={"top_n", "return_documents", "documents"})
            part = RerankRequest.model_validate(fields | {"documents": [request.documents[place] for place in missing]})
            part._journey = request.journey
            made = await ask(part)
            return made.usage, {
                missing[one.index]: Kept(made.model, {"relevance_score": one.relevance_score}) for one in made.results
            }

        company = [] if model.provider == "wootz" else texts
        usage, kept = await self._filled(key, request, control, "rerank", texts, company, compute)
        results = [RerankResult(index=place, **one.value) for place, one in kept.items()]
        results.sort(key=lambda one: (-one.relevance_score, one.index))
        if request.return_documents:
            for one in results:
                one.document = RerankDocument(text=texts[one.index])
        return RerankResponse(
            id=new_id("rerank"), model=_model_of(kept, request), results=results[: request.top_n], usage=usage
        )

    async def _filled(
        self,
        key: Key | None,
        request: Asked,
        control: CacheControl,
        kind: str,
        texts: Sequence[Text],
        company: Sequence[str],
        compute: Callable[[Sequence[int]], Awaitable[tuple[Usage, dict[int, Kept]]]],
    ) -> tuple[Usage, dict[int, Kept]]:
        """What each text has, by its place; what is not kept is computed, and then is."""
        journey, epoch = request.journey, self._epoch()
        owner = owner_of(key, journey.tenant)
        keys = text_keys(kind, owner, self._models, request, texts, company)
        found, age = ({}, 0.0) if control.no_cache else await self._look_up(keys, control)
        if len({one.model for one in found.values()}) > 1:
            found = {}
        usage, missing = Usage(), [place for place, key_ in enumerate(keys) if key_ not in found]
        if missing:
            first = {keys[place]: place for place in reversed(missing)}  # The same text twice is computed once.
            usage, made = await compute(sorted(first.values()))
            if found and {one.model for one in made.values()} != {one.model for one in found.values()}:
                journey.notes.append("caches: another model answers now, so all texts are asked anew")
                found, first = {}, {key_: place for place, key_ in reversed(list(enumerate(keys)))}
                again, made = await compute(sorted(first.values()))
                usage = Usage.count(usage.prompt_tokens + again.prompt_tokens, 0)
            new = {key_: made[place] for key_, place in first.items() if place in made}
            if epoch == self._epoch():
                self._keep(request, new, control)
        else:
            new = {}
            journey.cache_age = age
        journey.cache = "miss" if missing else "exact"
        num_found = sum(key_ in found for key_ in keys)
        journey.answer_headers["x-wootz-cached-texts"] = f"{num_found}/{len(keys)}"
        journey.notes.append(f"caches: {num_found} of {len(keys)} texts were kept")
        self._count(request.model, journey.cache)
        all_of_them = found | new
        return usage, {place: all_of_them[key_] for place, key_ in enumerate(keys) if key_ in all_of_them}

    async def _look_up(self, keys: Sequence[bytes], control: CacheControl) -> tuple[dict[bytes, Kept], float]:
        """What is kept of these, and the age of the oldest."""
        distinct = list(dict.fromkeys(keys))
        kept: dict[bytes, Kept] = {}
        oldest = 0.0
        for key, found in zip(distinct, await self.store.get_many(distinct), strict=True):
            if found is not None and (control.max_age is None or found.age <= control.max_age):
                kept[key] = msgspec.json.decode(found.body, type=Kept)
                oldest = max(oldest, found.age)
        return kept, oldest

    def _keep(self, request: Asked, new: dict[bytes, Kept], control: CacheControl) -> None:
        """Nobody waits for that."""
        seconds = min(control.ttl or self.config.ttl_seconds, self.config.ttl_seconds)
        model, tenant, user = request.model, request.journey.tenant, user_of(request)

        async def put() -> None:
            for key, one in new.items():
                body = msgspec.json.encode(one)
                if len(body) <= self.config.max_entry_bytes:
                    await self.store.put(key, body, seconds, model=model, tenant=tenant, user=user)

        keeping = asyncio.create_task(put())
        self._keeping.add(keeping)
        keeping.add_done_callback(self._keeping.discard)

    def _control(self, request: EmbeddingRequest | RerankRequest) -> CacheControl | None:
        """None where the cache is off, or the request opts out."""
        if not self.config.enabled:
            return None
        control = cache_control(request.journey.cache_control, request.cache)
        if not control.no_store:
            return control
        request.journey.cache = "bypass"
        self._count(request.model, "bypass")
        return None


def _texts(given: str | list[str] | list[int] | list[list[int]]) -> list[Text]:
    """One by one, each a text or token ids."""
    if isinstance(given, str):
        return [given]
    return [given] if given and isinstance(given[0], int) else list(given)  # type: ignore[list-item]


def _model_of(kept: dict[int, Kept], request: EmbeddingRequest | RerankRequest) -> str:
    return next((one.model for one in kept.values()), request.model)
