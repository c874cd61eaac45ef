"""The Caches page: what the gateway's caches hold, what they spared, and a way to forget it. For admins only."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.sessions import Visitor
from wootz.console.site import Site
from wootz.gateway.caches.routes import purge_and_tell, state_of

STATUSES = {
    "exact": "the same request was answered before",
    "semantic": "a question that means the same was",
    "shared": "the same request was under way",
    "miss": "a model was asked, and its answer kept if it may be",
    "bypass": "the request, or its kind, opted out",
}


def add_routes(router: APIRouter, site: Site) -> None:
    caches = site.gateway.caches

    @router.get("/caches")
    async def show_caches(request: Request, visitor: Visitor = Depends(site.allowed("operate"))) -> Response:
        return site.page("caches.html", request, visitor, state=await state_of(caches), statuses=STATUSES)

    @router.post("/caches/purge")
    async def purge(request: Request, _: Visitor = Depends(site.acting("operate"))) -> Response:
        """Of one model, or all."""
        model = str((await request.form()).get("model") or "") or None
        await purge_and_tell(site.gateway, model=model)
        return RedirectResponse("/caches", status_code=303)
