"""The two models of a migration, as the route of a request that is meant for the new one has them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from wootz.core import BadRequestError, LanguageModel, UnavailableError, UnsupportedError, WootzError
from wootz.core.wire import ChatChunk, ChatRequest, Completion, CompletionRequest
from wootz.gateway.migration.tags import ARM

log = logging.getLogger(__name__)


class Member(LanguageModel):
    def __init__(self, model: LanguageModel) -> None:
        self.model, self.name, self.provider = model, model.name, model.provider

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        return self._answer(request, self.model.chat)

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        return self._answer(request, self.model.complete)

    async def count_tokens(self, request: ChatRequest) -> int:
        return await self.model.count_tokens(request)

    async def ready(self) -> bool:
        return await self.model.ready()

    def _answer(self, request: Any, ask: Any) -> AsyncGenerator[Any, None]:
        raise NotImplementedError


class NewModel(Member):
    """What it refuses is asked of the old one: only that can tell whether it is the user's mistake or a gap of the new
    model, which must not be the user's to find."""

    async def _answer(self, request: Any, ask: Any) -> AsyncGenerator[Any, None]:
        try:
            async with aclosing(ask(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except BadRequestError as error:
            raise UnsupportedError(error.message, code=error.code, param=error.param, hint=error.hint) from error
        except WootzError:
            raise
        except Exception as error:
            log.exception('model "%s", which is on trial, failed', self.name)
            raise UnavailableError(f'model "{self.name}" failed') from error


class OldModel(Member):
    """Says of a request that the new model was to answer that it did not."""

    async def _answer(self, request: Any, ask: Any) -> AsyncGenerator[Any, None]:
        if ARM in request.journey.tags:
            request.journey.tags[ARM] = "fallback"
        async with aclosing(ask(request)) as chunks:
            async for chunk in chunks:
                yield chunk
