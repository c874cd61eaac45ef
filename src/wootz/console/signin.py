"""Signing in: through the identity provider, or with a key, once; from then on the browser holds a session cookie.

A key opens the console also where there is an identity provider: it is the glass to break when that one is down. Every
sign-in, and every one that failed, is in the audit log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.sessions import COOKIE, Throttle, Visitor
from wootz.console.site import Site, require_same_origin
from wootz.core import AuthenticationError, PermissionError_, RateLimitError, UnavailableError, WootzError
from wootz.gateway.identity.oidc import CALLBACK, SIGN_IN_MINUTES, Oidc
from wootz.gateway.keys import MASTER_KEY

SIGN_IN_COOKIE = "wootz_sign_in"


def add_routes(router: APIRouter, site: Site) -> None:
    sessions = site.sessions
    if sessions is None:
        return
    throttle = Throttle()
    oidc = Oidc(config, sessions.keys.database) if (config := site.gateway.config.identity.oidc) else None

    def login_form(request: Request, next: str, error: WootzError | None = None) -> Response:
        status = error.status if error else 200
        return site.page("login.html", request, None, status=status, next=next, error=error, has_oidc=oidc is not None)

    def set_cookie(response: Response, request: Request, name: str, value: str, seconds: int) -> None:
        # Also behind a proxy that does not say how it was reached, or is not trusted.
        secure = request.url.scheme == "https" or (oidc is not None and oidc.config.console_url.startswith("https://"))
        # Lax and not Strict, so that who comes from elsewhere, as from the identity provider, is known.
        response.set_cookie(name, value, max_age=seconds, path="/", httponly=True, samesite="lax", secure=secure)

    def signed_in(request: Request, next: str, token: str) -> Response:
        response = RedirectResponse(_local(next), status_code=303)
        set_cookie(response, request, COOKIE, token, int(sessions.lifetime.total_seconds()))
        return response

    async def failed(address: str, method: str, error: WootzError) -> None:
        told = isinstance(error, AuthenticationError | PermissionError_)  # Other messages may name a person.
        detail = {"method": method, "address": address, "reason": error.message if told else error.code}
        await sessions.keys.audit.append(actor="", action="session.refused", detail=detail)

    @router.get("/login")
    async def login_page(request: Request, next: str = "/") -> Response:
        return login_form(request, next)

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
            await failed(address, "key", error)
            return login_form(request, next, error)
        return signed_in(request, next, await sessions.open(key, "master key" if key.id == MASTER_KEY else "key"))

    @router.post("/logout")
    async def logout(request: Request, visitor: Visitor = Depends(site.acting_visitor)) -> Response:
        await sessions.close(request.cookies[COOKIE])
        response = RedirectResponse("/login", status_code=303)
        response.delete_cookie(COOKIE, path="/")
        return response

    if oidc is not None and site.people is not None:
        _add_oidc_routes(router, site, oidc, login_form, set_cookie, signed_in, failed)


def _add_oidc_routes(
    router: APIRouter,
    site: Site,
    oidc: Oidc,
    login_form: Callable[[Request, str, WootzError | None], Response],
    set_cookie: Callable[[Response, Request, str, str, int], None],
    signed_in: Callable[[Request, str, str], Response],
    failed: Callable[[str, str, WootzError], Awaitable[None]],
) -> None:
    assert site.sessions is not None
    assert site.people is not None
    sessions, people = site.sessions, site.people
    throttle = Throttle()  # Of its own: a provider that refuses people must not lock out the key that breaks the glass.

    @router.get("/login/oidc")
    async def leave(request: Request, next: str = "/") -> Response:
        """Off to the identity provider."""
        try:
            address, browser = await oidc.begin(_local(next))
        except UnavailableError as error:
            return login_form(request, next, error)
        response = RedirectResponse(address, status_code=303)
        set_cookie(response, request, SIGN_IN_COOKIE, browser, SIGN_IN_MINUTES * 60)
        return response

    @router.get(CALLBACK)
    async def come_back(
        request: Request, state: str = "", code: str = "", error: str = "", iss: str | None = None
    ) -> Response:
        address = request.client.host if request.client else ""
        browser = request.cookies.get(SIGN_IN_COOKIE, "")
        try:
            throttle.check(address)
            if error or not code:
                raise AuthenticationError("the identity provider did not let you in")
            claims, next = await oidc.finish(state=state, browser=browser, code=code, issuer=iss)
            _, key = await people.signed_in(claims.subject, claims.name, claims.groups)
            if key is None:
                raise PermissionError_("you have no role here", hint="ask an administrator for a group or role")
        except RateLimitError:
            raise
        except WootzError as refused:
            if isinstance(refused, AuthenticationError):
                throttle.failed(address)
            await failed(address, "oidc", refused)
            response = login_form(request, "/", refused)
        else:
            response = signed_in(request, next, await sessions.open(key, "oidc", {"groups": claims.groups}))
        response.delete_cookie(SIGN_IN_COOKIE, path="/")
        return response


def _local(target: str) -> str:
    """Only a path of this site: browsers read ``//host`` and ``/\\host`` as another one, and drop control ones."""
    is_path = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_path else "/"
