"""Signing in takes a key, once; from then on the browser holds a session cookie."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.sessions import COOKIE, LIFETIME, Throttle, Visitor
from wootz.console.site import Site, require_same_origin
from wootz.core import AuthenticationError, RateLimitError


def add_routes(router: APIRouter, site: Site) -> None:
    sessions = site.sessions
    if sessions is None:
        return
    throttle = Throttle()

    @router.get("/login")
    async def login_page(request: Request, next: str = "/") -> Response:
        return site.page("login.html", request, None, next=next, error=None)

    @router.post("/login")
    async def login(request: Request) -> Response:
        require_same_origin(request)
        form = await request.form()
        next = str(form.get("next") or "/")
        address = request.client.host if request.client else ""
        try:
            throttle.check(address)
            key = await sessions.keys.authenticate(str(form.get("key") or "").strip())
        except RateLimitError:
            raise
        except AuthenticationError as error:
            throttle.failed(address)
            return site.page("login.html", request, None, status=401, next=next, error=error)
        response = RedirectResponse(_local(next), status_code=303)
        response.set_cookie(
            COOKIE,
            await sessions.open(key),
            max_age=int(LIFETIME.total_seconds()),
            path="/",
            httponly=True,
            # Lax and not Strict, so that a link to a page from elsewhere finds its reader signed in.
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return response

    @router.post("/logout")
    async def logout(request: Request, visitor: Visitor = Depends(site.acting_visitor)) -> Response:
        await sessions.close(request.cookies[COOKIE])
        response = RedirectResponse("/login", status_code=303)
        response.delete_cookie(COOKIE, path="/")
        return response


def _local(target: str) -> str:
    """Only a path of this site: browsers read ``//host`` and ``/\\host`` as another one, and drop control ones."""
    is_path = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_path else "/"
