"""DashScope's native protocol at the front door, over any model: generation, embeddings, ranking.

What a program written for the ``dashscope`` SDK needs to change is ``base_http_api_url`` and its key. A request streams
when its header ``X-DashScope-SSE`` says "enable". Parameters that we don't know go on to the model, as they do for
every other surface. Tasks are in `wootz.gateway.surfaces.dashscope_tasks`.

Source: the DashScope API reference for Qwen, text embedding and ranking, and the SDK, which is the client in our tests.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from wootz.core import UnsupportedError
from wootz.core.media import MediaModel
from wootz.gateway.answers import WholeAnswer
from wootz.gateway.entrance import router_with_key
from wootz.gateway.gateway import Gateway
from wootz.gateway.surfaces.dashscope_request import EmbeddingBody, GenerationBody, RerankBody, wants_events
from wootz.gateway.surfaces.dashscope_tasks import made
from wootz.gateway.surfaces.dashscope_telling import ERROR_RESPONSES, GenerationTelling, error_body
from wootz.gateway.surfaces.speech import NativeSpeech
from wootz.gateway.surfaces.surface import encode, tell

PREFIX = "/api/v1/services"
TEXT = f"{PREFIX}/aigc/text-generation/generation"
MULTIMODAL = f"{PREFIX}/aigc/multimodal-generation/generation"
EMBEDDING = f"{PREFIX}/embeddings/text-embedding/text-embedding"
RERANK = f"{PREFIX}/rerank/text-rerank/text-rerank"

EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The whole answer, or with the header X-DashScope-SSE: enable its events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


def router(gateway: Gateway) -> APIRouter:
    router = router_with_key(gateway, "inference", error_body=error_body, responses=ERROR_RESPONSES, tags=["dashscope"])

    @router.post(TEXT, responses=EVENTS)
    async def generate(request: Request, body: GenerationBody) -> Response:
        return answer(request, body, TEXT, multimodal=False)

    @router.post(MULTIMODAL, responses=EVENTS)
    async def generate_from_media(request: Request, body: GenerationBody) -> Response:
        if body.is_spoken and wants_events(request):
            return NativeSpeech.of(gateway, request, body.to_media(), MULTIMODAL)
        if body.is_spoken or isinstance(gateway.models.get(body.model), MediaModel):  # What one waits for.
            return await make(request, body)
        return answer(request, body, MULTIMODAL, multimodal=True)

    def answer(request: Request, body: GenerationBody, route: str, *, multimodal: bool) -> Response:
        request_id, stream = request.state.request_id, wants_events(request)
        telling = GenerationTelling(
            request_id,
            incremental=body.parameters.incremental_output,
            as_text=not multimodal and body.wants_text,
            multimodal=multimodal,
        )
        chunks = gateway.chat(request.state.key, body.to_chat(stream=stream), request_id=request_id, route=route)
        return tell(chunks, telling, stream=stream)

    async def make(request: Request, body: GenerationBody) -> Response:
        if wants_events(request):
            raise UnsupportedError("what this model makes does not stream", hint="leave X-DashScope-SSE out")
        row = await gateway.tasks.submit(
            request.state.key, body.to_media(), request_id=request.state.request_id, route=MULTIMODAL
        )
        return JSONResponse({"output": made(row), "usage": row.usage, "request_id": request.state.request_id})

    @router.post(EMBEDDING)
    async def embed(request: Request, body: EmbeddingBody) -> Response:
        asked, key, request_id = body.to_embedding(), request.state.key, request.state.request_id

        async def whole() -> bytes:
            answer = await gateway.embed(key, asked, request_id=request_id, route=EMBEDDING)
            vectors = [
                {"text_index": one.index, "embedding": one.embedding, **(one.model_extra or {})} for one in answer.data
            ]
            usage = {"total_tokens": answer.usage.total_tokens}
            return encode({"output": {"embeddings": vectors}, "usage": usage, "request_id": request_id})

        return WholeAnswer(whole())

    @router.post(RERANK)
    async def rerank(request: Request, body: RerankBody) -> Response:
        asked, key, request_id = body.to_rerank(), request.state.key, request.state.request_id

        async def whole() -> bytes:
            answer = await gateway.rerank(key, asked, request_id=request_id, route=RERANK)
            results = [one.model_dump(exclude_none=True) for one in answer.results]
            usage = {"total_tokens": answer.usage.total_tokens}
            return encode({"output": {"results": results}, "usage": usage, "request_id": request_id})

        return WholeAnswer(whole())

    return router
