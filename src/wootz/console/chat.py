"""The Chat page. The conversation lives in the browser; each answer is one request like any other.

``POST /console/chat`` takes the same body as ``/v1/chat/completions`` and goes through the same gateway, so limits, the
ledger and errors are the same. Only the way to prove who is asking differs: a session instead of a key.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.models import view_models
from wootz.console.sessions import Visitor
from wootz.console.site import Site
from wootz.core import fold_chat
from wootz.core.wire import ChatRequest
from wootz.gateway.answers import answer_with


def add_routes(router: APIRouter, site: Site) -> None:
    @router.get("/chat")
    async def chat_page(request: Request, visitor: Visitor = Depends(site.allowed("inference"))) -> Response:
        return site.page("chat.html", request, visitor, models=await view_models(site.gateway, visitor.key))

    @router.post("/console/chat")
    async def chat(
        request: Request, body: ChatRequest, visitor: Visitor = Depends(site.acting("inference"))
    ) -> Response:
        chunks = site.gateway.chat(visitor.key, body, request_id=request.state.request_id, route="/console/chat")
        return answer_with(chunks, fold_chat, stream=body.stream, include_usage=True)
