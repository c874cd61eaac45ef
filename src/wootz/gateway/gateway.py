"""The life of a request, from the key to the record. HTTP, the console and tests all walk this same path:

1. *observe*: the record begins, so what is refused from here on is recorded too
2. *authorize*: the key may use this model, or the one that a migration puts in its place
3. *hold*: what the answer may use up is reserved in every limit and budget; it is settled when the record is left
4. *cached?*: an answer that was given before (`gateway/caches`), else a place at the model (`gateway/admission`)
5. *answer*: the model's chunks go through as they come
6. *record*: written, durably, before the caller gets the answer's last word

A caller who closes the iterator (or is cancelled) cancels the model's work at once, and is recorded as gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TypeVar

from wootz.core import (
    AuthenticationError,
    Config,
    LanguageModel,
    NotFoundError,
    PermissionError_,
    UnsupportedError,
    UpstreamError,
)
from wootz.core.acting import ACTOR
from wootz.core.journey import UNDER_WAY, Bounds
from wootz.core.media import MediaRequest, SpeechChunk, SpeechModel
from wootz.core.tool_wire import ModelRequest
from wootz.core.wire import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionRequest,
    EmbeddingRequest,
    EmbeddingResponse,
    RerankRequest,
    RerankResponse,
    SamplingFields,
    Usage,
)
from wootz.gateway.admission import Admission
from wootz.gateway.caches import Caches
from wootz.gateway.identity import residency
from wootz.gateway.identity.attributes import barred, may_use
from wootz.gateway.identity.roles import Permission
from wootz.gateway.kept import Kept
from wootz.gateway.keys import Key, KeyStore
from wootz.gateway.limits.conversations import TAG, conversation_of
from wootz.gateway.limits.limiter import Limiter
from wootz.gateway.migration.live import Migrations
from wootz.gateway.own_use import OwnUse
from wootz.gateway.routing import Route
from wootz.gateway.routing.candidate import prompt_tokens
from wootz.gateway.tasks import Tasks
from wootz.store.audit import AuditLog
from wootz.store.secrets import wrapper_of
from wootz.telemetry import Observation, Telemetry
from wootz.telemetry.alerts import Incidents, load_rules
from wootz.telemetry.drift import DriftSampler
from wootz.telemetry.graders import Grader, JudgeGrader, RuleGrader

log = logging.getLogger(__name__)

Chunk = TypeVar("Chunk", ChatChunk, Completion)
Asked = TypeVar("Asked", bound=SamplingFields)


class Gateway:
    """``keys=None`` means no accounts: everybody may use every model."""

    def __init__(
        self,
        config: Config,
        models: dict[str, LanguageModel],
        keys: KeyStore | None,
        telemetry: Telemetry,
        *,
        limits: Limiter | None = None,
    ) -> None:
        self.config = config
        self.models = models
        self.keys = keys
        self.telemetry = telemetry
        self.started = int(time.time())
        self.database = telemetry.ledger.database
        """Where the surfaces keep what they keep."""
        self.kept = Kept(self.database, wrapper_of(config, create=True))
        """What seals it."""
        self.draining = False
        """It is about to end: `/readyz` says so, and whoever can goes elsewhere."""
        self.limits = limits or Limiter.of(config, keys, telemetry)
        self.caches = Caches(config, models)
        self._has_restrictions = bool(config.identity.data_classes) or any(one.teams for one in config.models.values())
        self.audit = AuditLog(self.database)
        self.admission = Admission(config, telemetry)
        self.tasks = Tasks(self, self.database)
        self.migrations = Migrations(self)
        self.drift = DriftSampler(config.drift, self.database, self._grader)
        self.incidents = Incidents(self.database)
        self.alert_rules = load_rules(config.alerts.file, config.telemetry.latency_budget)

    # --- who ------------------------------------------------------------------------------------------------------

    async def authenticate(self, authorization: str | None, scope: Permission = "inference") -> Key | None:
        """The key of an ``Authorization`` header; None where there are no accounts.

        Raises `AuthenticationError` for a missing or bad key, `PermissionError_` for one without the scope.
        """
        if self.keys is None:
            return None
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise AuthenticationError("no API key was given", hint="send the header Authorization: Bearer sk-wootz-…")
        key = await self.keys.authenticate(token.strip())
        if not key.may(scope):
            raise PermissionError_(f'this API key lacks the permission "{scope}"', code="insufficient_scope")
        if scope == "inference":
            residency.check_here(key.standing, self.config.server.region)
        ACTOR.set(key.id)
        return key

    def visible_models(self, key: Key | None) -> list[str]:
        """The names of the models that this key may use."""
        return [name for name in self.models if self._may_use(key, name)]

    def _may_use(self, key: Key | None, name: str) -> bool:
        if key is None:
            return True
        if not key.may_use(name):
            return False
        return not self._has_restrictions or may_use(self.config, name, key.standing, _team_of(key))

    def _barred(self, key: Key) -> frozenset[str]:
        return barred(self.config, key.standing, _team_of(key)) if self._has_restrictions else frozenset()

    def model(self, key: Key | None, name: str) -> LanguageModel:
        """Raises `NotFoundError`, in the same words for a model that is not there and one the key may not use."""
        if name not in self.models or not self._may_use(key, name):
            raise NotFoundError(
                f'the model "{name}" does not exist or you do not have access to it',
                code="model_not_found",
                param="model",
            )
        return self.models[name]

    async def unready(self) -> list[str]:
        """The names of the models that would not work on a request now, but for those that a route makes up for."""
        models = dict(self.models)
        ready = await asyncio.gather(*(model.ready() for model in models.values()))
        replaced = {
            deployment.name
            for model, is_ready in zip(models.values(), ready, strict=True)
            if is_ready and isinstance(model, Route)
            for deployment in model.deployments
        }
        return [name for name, is_ready in zip(models, ready, strict=True) if not is_ready and name not in replaced]

    def add_model(self, model: LanguageModel, *, price_of: str) -> None:
        """A model more, at the price of one that is there, and in its region."""
        residency.guard(model, residency.region_of(self.config, price_of))
        self.models[model.name] = model
        self.telemetry.prices.share(model.name, price_of)

    def remove_model(self, name: str) -> None:
        del self.models[name]

    def _grader(self) -> Grader | None:
        """Who grades answers for `drift`; None where the model that should is not here."""
        if self.config.drift.grader == "rules":
            return RuleGrader()
        judge = self.config.drift.grader
        return JudgeGrader(OwnUse(self, judge, "drift")) if judge in self.models else None

    # --- what -----------------------------------------------------------------------------------------------------

    def chat(
        self, key: Key | None, request: ChatRequest, *, request_id: str, route: str = "/v1/chat/completions"
    ) -> AsyncGenerator[ChatChunk, None]:
        """The answer as `LanguageModel.chat` streams it, its last chunk the usage. Raises `WootzError`."""
        return self._answer(key, request, ChatChunk, lambda model, asked: model.chat(asked), request_id, route)

    def complete(
        self, key: Key | None, request: CompletionRequest, *, request_id: str, route: str = "/v1/completions"
    ) -> AsyncGenerator[Completion, None]:
        """The same for `LanguageModel.complete`."""
        return self._answer(key, request, Completion, lambda model, asked: model.complete(asked), request_id, route)

    async def embed(
        self, key: Key | None, request: EmbeddingRequest, *, request_id: str, route: str = "/v1/embeddings"
    ) -> EmbeddingResponse:
        async with self._observe(key, request, request_id, route) as observation:
            model = await self._admit(key, request, observation)
            answer = await self.caches.texts.embed(key, request, self.admission.once(key, model.embed))
            observation.usage(answer.usage)
            return answer

    async def rerank(
        self, key: Key | None, request: RerankRequest, *, request_id: str, route: str = "/v1/rerank"
    ) -> RerankResponse:
        async with self._observe(key, request, request_id, route) as observation:
            model = await self._admit(key, request, observation)
            answer = await self.caches.texts.rerank(key, request, model, self.admission.once(key, model.rerank))
            observation.usage(answer.usage)
            return answer

    async def count_tokens(self, key: Key | None, request: ChatRequest, *, request_id: str, route: str) -> int:
        async with self._observe(key, request, request_id, route) as observation:
            model = await self._admit(key, request, observation)
            return await model.count_tokens(request)

    @asynccontextmanager
    async def make(
        self, key: Key | None, request: MediaRequest, *, request_id: str, route: str
    ) -> AsyncGenerator[tuple[LanguageModel, Observation], None]:
        """A task's whole life (`wootz.gateway.tasks`): held while it lasts, recorded when it has ended."""
        async with self._observe(key, request, request_id, route) as observation:
            yield await self._admit(key, request, observation), observation

    async def speak(
        self, key: Key | None, request: MediaRequest, *, request_id: str, route: str
    ) -> AsyncGenerator[SpeechChunk, None]:
        """Speech as `SpeechModel.speak` makes it, its last chunk the usage. Raises `WootzError`."""
        heard, complete, left = False, False, False
        async with self.make(key, request, request_id=request_id, route=route) as (model, observation):
            if not isinstance(model, SpeechModel):
                raise UnsupportedError(f'model "{model.name}" does not speak', param="model")
            try:
                asking = self.admission.ask(key, request, model.speak)
                async with aclosing(asking(request)) as chunks:
                    async for chunk in chunks:
                        if chunk.audio:
                            heard = True
                            observation.chunk(0)
                        if chunk.usage is not None:
                            complete = True
                            observation.made(chunk.units or request.likely_units, chunk.usage)
                            if not heard:
                                raise UpstreamError(f'model "{model.name}" made no sound', code="upstream_malformed")
                            observation.finish_reason = "stop"
                            await observation.end()
                        yield chunk
            except (asyncio.CancelledError, GeneratorExit):
                left = True
                raise
            finally:
                if not complete and (heard or left):  # Nobody tells how much of it was spoken: all was ordered.
                    observation.made(request.likely_units, request.likely_tokens)
            if not complete:
                raise UpstreamError("the model's speech broke off", code="incomplete_answer")

    async def _answer(
        self,
        key: Key | None,
        request: Asked,
        chunk_type: type[Chunk],
        ask: Callable[[LanguageModel, Asked], AsyncGenerator[Chunk, None]],
        request_id: str,
        route: str,
    ) -> AsyncGenerator[Chunk, None]:
        num_parts, complete, left = 0, False, False
        async with self._observe(key, request, request_id, route) as observation:
            model = await self._admit(key, request, observation)
            try:
                asking = self.admission.ask(key, request, partial(ask, model))
                asking = self.migrations.watching(request, request_id, asking)
                asking = self.drift.sampling(request, request_id, asking)
                answer = self.caches.chunks(key, request, request_id, chunk_type, asking)
                async with aclosing(answer) as chunks:
                    async for chunk in chunks:
                        for choice in chunk.choices:
                            if _has_content(choice):
                                joined = chunk.num_parts if isinstance(chunk, ChatChunk) else 1
                                num_parts += joined
                                observation.chunk(joined)
                            observation.ear.hear(choice)
                            if isinstance(choice, ChunkChoice) and choice.delta.tool_calls:
                                observation.tool_calls(choice.delta.tool_calls)
                            if observation.body is not None:
                                observation.body.add(choice)
                            observation.finish_reason = choice.finish_reason or observation.finish_reason
                            observation.guarantee = choice.guarantee or observation.guarantee
                        if chunk.usage is not None:
                            complete = True
                            observation.usage(chunk.usage)
                            await observation.end()
                        yield chunk
            except (asyncio.CancelledError, GeneratorExit):
                left = True
                raise
            finally:
                if not complete:  # Nobody will tell the usage of half an answer; its parts are nearly its tokens.
                    prompt = prompt_tokens(request) if num_parts or left else 0
                    observation.usage(Usage.count(prompt, num_parts))
            if not complete:
                raise UpstreamError("the model's answer broke off", code="incomplete_answer")

    async def _admit(self, key: Key | None, request: ModelRequest, observation: Observation) -> LanguageModel:
        journey = request.journey
        UNDER_WAY.set(journey)
        if key is not None:
            journey.caller, journey.tenant = key.id, key.tenant
            journey.team, journey.user = key.team.id if key.team else "", key.user.id if key.user else ""
            if conversation := conversation_of(request):
                journey.conversation = journey.tags[TAG] = conversation
            journey.tags.update(key.tags)
            residency.check_here(key.standing, self.config.server.region)  # The console and batches come straight here.
            if self._has_restrictions or key.standing.regions is not None:
                journey.bounds = Bounds(key.standing.regions, self._barred(key))
            if isinstance(request, SamplingFields) and (request.priority or 0) < 0 and not key.is_admin:
                raise PermissionError_('"priority" below 0 needs a key with the scope "admin"', param="priority")
        model = self.migrations.choose(request, self.model(key, request.model))
        with request.journey.span("hold"):
            await self.limits.hold(key, request, model, observation)
        return model

    def _observe(self, key: Key | None, request: ModelRequest, request_id: str, route: str) -> Observation:
        model = self.models.get(request.model)
        return self.telemetry.observe(
            request_id=request_id,
            route=route,
            key_id=key.id if key else None,
            model=request.model,
            provider=model.provider if model else None,
            stream=bool(getattr(request, "stream", False)),
            user=request.user,
            journey=request.journey,
            metadata=(request.model_extra or {}).get("metadata"),
            body=request if request.journey.lane != "shadow" else None,
        )


def _team_of(key: Key) -> tuple[str, ...]:
    return (key.team.name, key.team.id) if key.team else ()


def _has_content(choice: ChunkChoice | CompletionChoice) -> bool:
    if isinstance(choice, CompletionChoice):
        return bool(choice.text)
    return bool(choice.delta.content or choice.delta.reasoning_content or choice.delta.tool_calls)
