"""The console's routes, and what holds for every one of them: security headers, and errors as pages.

Pages are rendered on the server. The few scripts are plain modules from ``static/``, so the content security policy
can forbid everything inline and everything from elsewhere: what a model or a user wrote has nowhere to run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from starlette.requests import Request
from starlette.responses import Response

from wootz.console import alerts, audit, caches, chat, keys, migrations, models, requests, runs, signin, spend, users
from wootz.console.sessions import Visitor
from wootz.console.site import Site
from wootz.core import AuthenticationError, NotFoundError, RateLimitError, WootzError
from wootz.gateway import Gateway
from wootz.gateway.identity.people import People
from wootz.gateway.identity.sessions import Sessions
from wootz.gateway.late_route import LateRoute
from wootz.gateway.strict_json import StrictJSONRequest
from wootz.store import Database
from wootz.telemetry import Ledger

STATIC = Path(__file__).parent / "static"

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: browsers would then send "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def install(app: FastAPI, gateway: Gateway, database: Database, ledger: Ledger) -> None:
    """Every page, and one for addresses at which there is nothing.

    Without accounts (``gateway.keys is None``) there is no signing in and no Keys page.
    """
    sessions = Sessions(gateway.keys, gateway.config.identity) if gateway.keys else None
    people = People(gateway.keys, gateway.config.identity) if gateway.keys else None
    site = Site(gateway, ledger, sessions, people)
    app.router.routes.extend(_routes(site).routes)

    @app.exception_handler(404)
    async def nothing_here(request: Request, _: Exception) -> Response:
        error = NotFoundError(f"nothing is served at {request.url.path}", code="unknown_url")
        return _secured(_error_response(site, request, error))


def _routes(site: Site) -> APIRouter:
    router = APIRouter(include_in_schema=False, route_class=_page_route(site))

    @router.get("/")
    async def home(visitor: Visitor = Depends(site.visitor)) -> Response:
        return RedirectResponse("/chat" if visitor.may("inference") else "/requests", status_code=303)

    @router.get("/static/{name:path}")
    async def static(name: str) -> Response:
        file = (STATIC / name).resolve()
        if not file.is_relative_to(STATIC) or not file.is_file():
            raise NotFoundError(f'no file "{name}"')
        # Modules import each other by plain names, so a browser asks each time and mostly hears "not modified".
        return FileResponse(file, headers={"Cache-Control": "no-cache"})

    for page in (signin, chat, models, keys, users, requests, spend, caches, runs, migrations, alerts, audit):
        page.add_routes(router, site)
    return router


def _page_route(site: Site) -> type[LateRoute]:
    class PageRoute(LateRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            handle = super().get_route_handler()

            async def handle_page(request: Request) -> Response:
                try:
                    response = await handle(StrictJSONRequest(request.scope, request.receive))
                except WootzError as error:
                    response = _error_response(site, request, error)
                return _secured(response)

            return handle_page

    return PageRoute


def _secured(response: Response) -> Response:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _error_response(site: Site, request: Request, error: WootzError) -> Response:
    """A person gets a page, a script gets the API's JSON, and who is not signed in gets to sign in."""
    headers = {"Retry-After": str(round(error.retry_after))} if isinstance(error, RateLimitError) else {}
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse(error.to_openai(), status_code=error.status, headers=headers)
    if isinstance(error, AuthenticationError) and request.method == "GET":
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/login?next={quote(here, safe='')}", status_code=303)
    return site.page("error.html", request, None, status=error.status, error=error, headers=headers)
