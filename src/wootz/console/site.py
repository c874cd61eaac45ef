"""What the pages share: who is asking, whether a change was really asked for, and how a page is rendered."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from wootz.console import formats
from wootz.console.sessions import COOKIE, Sessions, Visitor
from wootz.core import AuthenticationError, PermissionError_
from wootz.gateway import Gateway
from wootz.telemetry import Ledger

_templates = Environment(
    loader=PackageLoader("wootz.console"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(formats.FILTERS)


@dataclass(frozen=True)
class Site:
    gateway: Gateway
    ledger: Ledger
    sessions: Sessions | None
    """None without accounts."""

    async def visitor(self, request: Request) -> Visitor:
        """Who is signed in. Raises `AuthenticationError`."""
        if self.sessions is None:
            return Visitor(key=None)
        token = request.cookies.get(COOKIE)
        visitor = await self.sessions.find(token) if token else None
        if visitor is None:
            raise AuthenticationError("you are not signed in, or your session has ended")
        return visitor

    async def key_names(self, visitor: Visitor) -> dict[str, str]:
        """By id, the names this visitor may see: an admin everyone's, else their own."""
        if self.sessions is None or visitor.key is None:
            return {}
        keys = await self.sessions.keys.list() if visitor.is_admin else [visitor.key]
        return {key.id: key.name for key in keys}

    async def names(self, kind: str, visitor: Visitor) -> dict[str, str]:
        """What keys, teams and users are called, by id."""
        if kind == "key":
            return await self.key_names(visitor)
        if self.sessions is None or kind not in ("team", "user") or not visitor.is_admin:
            return {}
        return {account.id: account.name for account in await self.sessions.keys.list_accounts(kind)}

    async def admin(self, request: Request) -> Visitor:
        return _require_admin(await self.visitor(request))

    async def acting_visitor(self, request: Request) -> Visitor:
        """The visitor, for a request that changes something: it must come from our own pages and hold the token."""
        require_same_origin(request)
        visitor = await self.visitor(request)
        sent = request.headers.get("x-csrf-token") or (await request.form()).get("csrf_token") or ""
        if not hmac.compare_digest(str(sent).encode(), visitor.csrf_token.encode()):
            raise PermissionError_("this form is out of date; reload the page and try again", code="csrf_failed")
        return visitor

    async def acting_admin(self, request: Request) -> Visitor:
        return _require_admin(await self.acting_visitor(request))

    def page(
        self,
        template: str,
        request: Request,
        visitor: Visitor | None,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        **values: Any,
    ) -> HTMLResponse:
        html = _templates.get_template(template).render(
            path=request.url.path, visitor=visitor, has_accounts=self.sessions is not None, **values
        )
        return HTMLResponse(html, status_code=status, headers=headers)


def require_same_origin(request: Request) -> None:
    """Refuse what a browser says another site has sent.

    By ``Sec-Fetch-Site`` where the browser sends it (HTTPS and localhost), else by ``Origin``. A request with neither
    comes from no browser, so nobody's cookies were ridden.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        same = site in ("same-origin", "none")
    else:
        same = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not same:
        raise PermissionError_("this request came from another site", code="cross_origin")


def _require_admin(visitor: Visitor) -> Visitor:
    if not visitor.is_admin:
        raise PermissionError_("this page needs a key with the admin scope")
    return visitor
