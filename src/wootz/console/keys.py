"""The Keys page: who may use the platform, and for what; how much of each limit is used. For admins only."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.budgets import LimitBar, bars
from wootz.console.sessions import Visitor
from wootz.console.site import Site
from wootz.core import BadRequestError
from wootz.gateway.limit_routes import states
from wootz.gateway.limits import CountersUnavailable

ROLE_WORDS = {
    "viewer": "its team's requests",
    "developer": "its team's requests, and inference",
    "billing": "what everybody spends",
    "operator": "engines, routes, caches, runs",
    "auditor": "audit log, users, what was said",
    "provisioner": "users and groups by SCIM",
    "admin": "everything, keys too",
}
LIFETIMES = {"": "Never", "7": "In 7 days", "30": "In 30 days", "90": "In 90 days", "365": "In a year"}


def add_routes(router: APIRouter, site: Site) -> None:
    sessions = site.sessions
    if sessions is None:
        return
    keys = sessions.keys

    async def page(request: Request, visitor: Visitor, status: int = 200, **values: Any) -> Response:
        values = {"created": None, "plaintext": None, "error": None, "form": FormData()} | values
        return site.page(
            "keys.html",
            request,
            visitor,
            status=status,
            keys=await keys.list(),
            models=list(site.gateway.models),
            lifetimes=LIFETIMES,
            roles=ROLE_WORDS,
            now=datetime.now(UTC),
            limit_bars=await limit_bars(),
            **values,
        )

    async def limit_bars() -> list[LimitBar] | None:
        """None while the counters are out of reach."""
        try:
            return bars(await states(keys, site.gateway.limits))
        except CountersUnavailable:
            return None

    @router.get("/keys")
    async def list_keys(request: Request, visitor: Visitor = Depends(site.allowed("accounts"))) -> Response:
        return await page(request, visitor)

    @router.post("/keys")
    async def create_key(request: Request, visitor: Visitor = Depends(site.acting("accounts"))) -> Response:
        """Answers with the page itself and no redirect: the plaintext exists in this one response only."""
        form = await request.form()
        try:
            created, plaintext = await keys.create(str(form.get("name") or "").strip(), **_limits(form))
        except BadRequestError as error:
            return await page(request, visitor, status=error.status, error=error, form=form)
        return await page(request, visitor, created=created, plaintext=plaintext)

    @router.post("/keys/{key_id}/revoke")
    async def revoke_key(key_id: str, visitor: Visitor = Depends(site.acting("accounts"))) -> Response:
        await keys.revoke(key_id)
        return RedirectResponse("/keys", status_code=303)


def _limits(form: FormData) -> dict[str, Any]:
    rate, days = str(form.get("requests_per_minute") or "").strip(), str(form.get("expires") or "")
    if rate and not (rate.isdecimal() and 0 < int(rate) < 2**31):
        raise BadRequestError("requests per minute must be a whole number of at least 1", param="requests_per_minute")
    if days not in LIFETIMES:
        raise BadRequestError("expiry is not one of the choices", param="expires")
    return {
        "scopes": tuple(str(scope) for scope in form.getlist("scopes")),
        "models": [str(model) for model in form.getlist("models")] or None,
        "requests_per_minute": int(rate) if rate else None,
        "expires_at": datetime.now(UTC) + timedelta(days=int(days)) if days else None,
    }
