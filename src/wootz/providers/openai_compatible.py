"""Any endpoint that speaks OpenAI's protocol as a `LanguageModel`: OpenAI, DashScope's compatible mode, vLLM,
Ollama, another Wootz.

The request goes on as the user wrote it (fields we do not know included), under the endpoint's own name for the
model. We always stream: a whole answer is a folded stream, so a client that goes away stops the remote work either way.

Endpoints differ in the stream's last words: usage may come with the last content, with every chunk, alone, or never.
Here it always comes once, alone and last, as `LanguageModel` promises. An endpoint that never says its usage is
recorded with zero tokens: we cannot count for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError
from pydantic_core import from_json

from wootz.core import LanguageModel, UpstreamError
from wootz.core.wire import (
    ChatChunk,
    ChatRequest,
    Completion,
    CompletionRequest,
    EmbeddingRequest,
    EmbeddingResponse,
    RerankRequest,
    RerankResponse,
    SamplingFields,
    Usage,
)
from wootz.providers.endpoint import Endpoint
from wootz.providers.sse import event_data
from wootz.providers.upstream_errors import error_from_event, error_from_response

Chunk = TypeVar("Chunk", ChatChunk, Completion)
Whole = TypeVar("Whole", EmbeddingResponse, RerankResponse)


class OpenAICompatibleModel(LanguageModel):
    def __init__(self, endpoint: Endpoint) -> None:
        self.name = endpoint.name
        self.upstream_model = endpoint.upstream_model
        api_key, timeouts = endpoint.api_key, endpoint.timeouts
        self._api_key = api_key
        self._http = httpx.AsyncClient(
            base_url=endpoint.base_url + "/",
            headers={**endpoint.headers} | ({"authorization": f"Bearer {api_key}"} if api_key else {}),
            timeout=httpx.Timeout(timeouts.silence, connect=timeouts.connect),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        )
        self.provider = self._http.base_url.host

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        return self._stream("chat/completions", request, ChatChunk)

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        return self._stream("completions", request, Completion)

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        return await self._ask("embeddings", request, EmbeddingResponse)

    async def rerank(self, request: RerankRequest) -> RerankResponse:
        return await self._ask("rerank", request, RerankResponse)

    async def close(self) -> None:
        await self._http.aclose()

    async def _ask(self, path: str, request: EmbeddingRequest | RerankRequest, answer_type: type[Whole]) -> Whole:
        body = request.model_dump(exclude_unset=True) | {"model": self.upstream_model}
        async with self._post(path, body) as response:
            try:
                answer = answer_type.model_validate_json(await response.aread())
            except ValidationError as error:
                raise self._malformed(error) from None
        answer.model = self.name
        return answer

    async def _stream(self, path: str, request: SamplingFields, chunk_type: type[Chunk]) -> AsyncGenerator[Chunk, None]:
        body = request.model_dump(exclude_unset=True) | {"model": self.upstream_model, "stream": True}
        body["stream_options"] = (body.get("stream_options") or {}) | {"include_usage": True}
        last: Chunk | None = None
        usage: Usage | None = None
        finished = done = False
        async with self._post(path, body) as response:
            events = event_data(response.aiter_bytes())
            try:
                async with aclosing(events):
                    async for data in events:
                        if data == "[DONE]":
                            done = True
                            break
                        last = self._parse(data, chunk_type)
                        usage = last.usage or usage
                        last.usage = None
                        finished = finished or any(choice.finish_reason for choice in last.choices)
                        if last.choices:
                            yield last
            except ValueError as error:
                raise self._malformed(error) from None
        if last is None or not (done or (finished and usage)):
            raise UpstreamError(f'model "{self.name}": the endpoint cut its answer short', code="upstream_cut_off")
        yield last.model_copy(update={"choices": [], "usage": usage or Usage()})

    def _parse(self, data: str, chunk_type: type[Chunk]) -> Chunk:
        event = from_json(data, allow_inf_nan=False)
        if not isinstance(event, dict):
            raise ValueError("an event that is no JSON object")
        if event.get("error"):
            raise error_from_event(event["error"], model=self.name, secret=self._api_key)
        event["model"] = self.name
        event["choices"] = choices = event.get("choices") or []
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                # Some endpoints say "" for "not finished", and have reasons of their own for "finished".
                reason = choice.get("finish_reason")
                choice["finish_reason"] = _FINISH_REASONS.get(str(reason), "stop") if reason else None
        return chunk_type.model_validate(event)

    def _malformed(self, error: Exception) -> UpstreamError:
        what = "is not OpenAI's protocol" if isinstance(error, ValidationError) else "is not JSON events"
        return UpstreamError(f'model "{self.name}": what the endpoint answered {what}', code="upstream_malformed")

    @asynccontextmanager
    async def _post(self, path: str, body: dict[str, Any]) -> AsyncGenerator[httpx.Response, None]:
        """The open response, its status good; whatever goes wrong on the way becomes a `WootzError`."""
        try:
            async with self._http.stream("POST", path, json=body) as response:
                if not response.is_success:
                    raise await error_from_response(response, model=self.name, secret=self._api_key)
                yield response
        except httpx.TimeoutException as error:
            what = "did not accept a connection" if isinstance(error, httpx.ConnectTimeout) else "fell silent"
            raise UpstreamError(f'model "{self.name}": the endpoint {what}', code="upstream_timeout") from None
        except httpx.ConnectError:
            raise UpstreamError(
                f'model "{self.name}": the endpoint cannot be reached', code="upstream_unreachable"
            ) from None
        except httpx.HTTPError:
            raise UpstreamError(
                f'model "{self.name}": the endpoint cut its answer short', code="upstream_cut_off"
            ) from None


_FINISH_REASONS = {reason: reason for reason in ("stop", "length", "tool_calls", "content_filter")} | {
    "function_call": "tool_calls",
    "max_tokens": "length",
}
