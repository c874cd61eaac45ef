"""DashScope's own protocol as a `LanguageModel`: chat (text and multimodal), embeddings, ranking.

The OpenAI-compatible surface (kind ``dashscope-compatible``) covers most chat models; this one has all of them, and the
fields that the other drops: search with its sources, thinking budgets, cache details, text types of embeddings.

We always stream, in increments. So thinking and models that only stream work for whole answers too, and a client that
goes away stops the remote work either way.

Source: the DashScope API reference, and the dashscope SDK 2.0.2, against which both this and our fake are tested.
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from pydantic_core import from_json

from wootz.core import BadRequestError, LanguageModel, UnsupportedError, UpstreamError
from wootz.core.wire import (
    ChatChunk,
    ChatRequest,
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
from wootz.providers.capabilities import capabilities_of, check
from wootz.providers.dashscope_catalogue import MULTIMODAL_SERVICE, TASK_KINDS, TEXT_SERVICE, Kind, facts_of
from wootz.providers.dashscope_errors import WRONG_SERVICE
from wootz.providers.dashscope_http import SSE, DashScopeHttp
from wootz.providers.dashscope_speech import DashScopeSpeechModel
from wootz.providers.dashscope_tasks import DashScopeMediaModel
from wootz.providers.dashscope_wire import chat_body, choices_of, needs_multimodal, usage_of
from wootz.providers.endpoint import Endpoint
from wootz.providers.prompt_cache import prepare_for
from wootz.providers.regions import check_region


def open_dashscope(endpoint: Endpoint) -> LanguageModel:
    """By what the table says of the model: one that answers, or one that makes pictures, videos, speech (tasks)."""
    kind = facts_of(endpoint.upstream_model).kind
    if kind == "speech":
        return DashScopeSpeechModel(endpoint)
    return DashScopeMediaModel(endpoint) if kind in TASK_KINDS else DashScopeModel(endpoint)


class DashScopeModel(LanguageModel):
    def __init__(self, endpoint: Endpoint) -> None:
        self.name = endpoint.name
        self.upstream_model = endpoint.upstream_model
        self.facts = facts_of(endpoint.upstream_model)
        self._http = DashScopeHttp(endpoint)
        self.provider = self._http.host
        self._abilities = capabilities_of("dashscope-compatible", endpoint.upstream_model)  # The same on both surfaces.
        self._chat_service = self.facts.service

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        self._must_be("chat", "chat")
        check(self._abilities, request)
        check_region(self._http.endpoint)
        return self._http.in_time(self._from_either_service(request))

    async def _from_either_service(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        has_media, begun = needs_multimodal(request), False
        service = MULTIMODAL_SERVICE if has_media else self._chat_service
        try:
            async with aclosing(self._stream(request, service)) as chunks:
                async for chunk in chunks:
                    begun = True
                    yield chunk
            return
        except BadRequestError as error:
            # Only DashScope knows for sure which of its two services has a model, and says so at once.
            if begun or has_media or WRONG_SERVICE not in error.message:
                raise
        self._chat_service = TEXT_SERVICE if service == MULTIMODAL_SERVICE else MULTIMODAL_SERVICE
        async with aclosing(self._stream(request, self._chat_service)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _stream(self, request: ChatRequest, service: str) -> AsyncGenerator[ChatChunk, None]:
        prepared = prepare_for(request, self._http.endpoint)
        body = chat_body(prepared, self.upstream_model, multimodal=service == MULTIMODAL_SERVICE)
        chunk: ChatChunk | None = None
        usages: dict[int, dict[str, Any]] = {}
        unfinished = set(range(request.n or 1))
        async with aclosing(self._http.events(f"services/{service}", body, SSE)) as events:
            async for data in events:
                try:
                    event = from_json(data, allow_inf_nan=False)
                    chunk = self._chunk(event)
                    if event.get("usage"):
                        usages[chunk.choices[0].index if chunk.choices else 0] = event["usage"]
                except (ValueError, TypeError, AttributeError):
                    raise self._http.malformed() from None
                unfinished -= {choice.index for choice in chunk.choices if choice.finish_reason}
                if chunk.choices:
                    yield chunk
        if chunk is None or unfinished:
            raise UpstreamError(f'model "{self.name}": DashScope cut its answer short', code="upstream_cut_off")
        try:
            usage = _sum(usages)
        except (ValueError, TypeError, AttributeError):
            raise self._http.malformed() from None
        yield chunk.model_copy(update={"choices": [], "usage": usage})

    def _chunk(self, event: Any) -> ChatChunk:
        """Raises `WootzError` for a failure, ValueError for what is neither."""
        output = event.get("output")
        if output is None:
            if event.get("code"):
                raise self._http.failure(event)
            raise ValueError("an event without output")
        chunk = ChatChunk(id=event.get("request_id") or new_id("chatcmpl"), model=self.name, choices=choices_of(output))
        if sources := output.get("search_info"):
            chunk.search_info = sources  # pyright: ignore[reportAttributeAccessIssue]
        return chunk

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """As many requests as DashScope's limit on texts needs, all at once; order is kept."""
        self._must_be("embedding", "embed")
        check_region(self._http.endpoint)
        texts = [request.input] if isinstance(request.input, str) else request.input
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UnsupportedError("DashScope embeds texts, not token ids", param="input")
        dimensions = self.facts.dimensions
        if request.dimensions and dimensions and request.dimensions not in dimensions:
            wanted = ", ".join(map(str, dimensions))
            raise BadRequestError(f'model "{self.name}" has vectors of {wanted} dimensions', param="dimensions")
        parameters = {**(request.model_extra or {})}
        if request.dimensions:
            parameters["dimension"] = request.dimensions
        size = self.facts.batch
        answers = await asyncio.gather(
            *(self._embed([*texts[at : at + size]], parameters) for at in range(0, len(texts), size))
        )
        vectors = [vector for vectors, _ in answers for vector in vectors]
        if request.encoding_format == "base64":
            for vector in vectors:
                vector.embedding = _base64(vector.embedding)
        for index, vector in enumerate(vectors):
            vector.index = index
        total = sum(tokens for _, tokens in answers)
        return EmbeddingResponse(data=vectors, model=self.name, usage=Usage(prompt_tokens=total, total_tokens=total))

    async def _embed(self, texts: list[Any], parameters: dict[str, Any]) -> tuple[list[Embedding], int]:
        body = {"model": self.upstream_model, "input": {"texts": texts}, "parameters": parameters}
        answer = await self._http.ask(f"services/{self.facts.service}", body)
        try:
            found = sorted(answer["output"]["embeddings"], key=lambda one: one["text_index"])
            vectors = [Embedding(index=0, embedding=one.get("embedding") or []) for one in found]
            for vector, one in zip(vectors, found, strict=True):
                if sparse := one.get("sparse_embedding"):
                    vector.sparse_embedding = sparse  # pyright: ignore[reportAttributeAccessIssue]
            if len(vectors) != len(texts):
                raise ValueError("not one vector a text")
            return vectors, int(answer["usage"]["total_tokens"])
        except (ValueError, TypeError, LookupError, AttributeError):
            raise self._http.malformed() from None

    async def rerank(self, request: RerankRequest) -> RerankResponse:
        self._must_be("rerank", "rank documents")
        check_region(self._http.endpoint)
        parameters = request.model_dump(include={"top_n", "return_documents"}, exclude_none=True)
        body = {
            "model": self.upstream_model,
            "input": {"query": request.query, "documents": request.texts},
            "parameters": (request.model_extra or {}) | parameters,
        }
        answer = await self._http.ask(f"services/{self.facts.service}", body)
        try:
            results = [
                RerankResult(
                    index=one["index"],
                    relevance_score=one["relevance_score"],
                    document=RerankDocument(text=request.texts[one["index"]]) if request.return_documents else None,
                )
                for one in answer["output"]["results"]
            ]
            total = int(answer["usage"]["total_tokens"])
        except (ValueError, TypeError, LookupError):
            raise self._http.malformed() from None
        usage = Usage(prompt_tokens=total, total_tokens=total)
        return RerankResponse(id=answer.get("request_id") or "", model=self.name, results=results, usage=usage)

    async def close(self) -> None:
        await self._http.close()

    def _must_be(self, kind: Kind, verb: str) -> None:
        if self.facts.kind != kind:
            raise UnsupportedError(
                f'model "{self.name}" cannot {verb}: DashScope\'s {self.upstream_model} is for {self.facts.kind}',
                param="model",
            )


def _sum(usages: dict[int, dict[str, Any]]) -> Usage:
    """Each event tells the tokens so far; with several choices, of its own choice, and the prompt counts once."""
    whole: dict[str, Any] = {}
    for usage in usages.values():
        written = whole.get("output_tokens", 0) + (usage.get("output_tokens") or 0)
        whole = usage | {"output_tokens": written}
    if len(usages) > 1:
        whole.pop("total_tokens", None)
    return usage_of(whole)


def _base64(vector: Any) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
