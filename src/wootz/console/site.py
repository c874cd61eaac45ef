"""What the pages share: who is asking, whether a change was really asked for, and how a page is rendered."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from wootz.console import formats
from wootz.console.sessions import COOKIE, Visitor
from wootz.core import AuthenticationError, PermissionError_
from wootz.core.acting import ACTOR
from wootz.gateway import Gateway
from wootz.gateway.identity.people import People
from wootz.gateway.identity.roles import Permission
from wootz.gateway.identity.sessions import Sessions
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
class Page:
    name: str
    label: str
    letter: str
    permission: Permission | None = None
    """Who lacks it does not see the page. None: everybody sees it, each as much as they may."""
    of_accounts: bool = False


PAGES = (
    Page("chat", "Chat", "c", "inference"),
    Page("models", "Models", "m"),
    Page("keys", "Keys", "k", "accounts", of_accounts=True),
    Page("users", "Users", "p", "people", of_accounts=True),
    Page("requests", "Requests", "r"),
    Page("spend", "Spend", "s"),
    Page("caches", "Caches", "a", "operate"),
    Page("runs", "Runs", "u", "operate"),
    Page("migrations", "Migrations", "g", "operate"),
    Page("alerts", "Alerts", "i", "operate"),
    Page("audit", "Audit", "l", "audit", of_accounts=True),
)


@dataclass(frozen=True)
class Site:
    gateway: Gateway
    ledger: Ledger
    sessions: Sessions | None
    """None without accounts."""
    people: People | None = None

    async def visitor(self, request: Request) -> Visitor:
        """Who is signed in. Raises `AuthenticationError`."""
        if self.sessions is None:
            return Visitor(key=None)
        token = request.cookies.get(COOKIE)
        session = await self.sessions.find(token) if token else None
        if session is None:
            raise AuthenticationError("you are not signed in, or your session has ended")
        ACTOR.set(session.key.id)
        return Visitor(session.key, session.csrf_token)

    async def key_names(self, visitor: Visitor) -> dict[str, str]:
        """By id, the names this visitor may see: an admin everyone's, else their own."""
        if self.sessions is None or visitor.key is None:
            return {}
        keys = [visitor.key] if visitor.confined_to else await self.sessions.keys.list()
        in_team = (key for key in keys if visitor.team is None or (key.team and key.team.id == visitor.team))
        return {key.id: key.name for key in in_team}

    async def names(self, kind: str, visitor: Visitor) -> dict[str, str]:
        """What keys, teams and users are called, by id."""
        if kind == "key":
            return await self.key_names(visitor)
        if self.sessions is None or kind not in ("team", "user") or not visitor.may("costs"):
            return {}
        return {account.id: account.name for account in await self.sessions.keys.list_accounts(kind)}

    def allowed(self, permission: Permission) -> Callable[[Request], Awaitable[Visitor]]:
        """A dependency: the visitor, who may do this. Raises `PermissionError_`."""

        async def find(request: Request) -> Visitor:
            return _require(await self.visitor(request), permission)

        return find

    def acting(self, permission: Permission) -> Callable[[Request], Awaitable[Visitor]]:
        """The same for a request that changes something."""

        async def find(request: Request) -> Visitor:
            return _require(await self.acting_visitor(request), permission)

        return find

    async def acting_visitor(self, request: Request) -> Visitor:
        """The visitor, for a request that changes something: it must come from our own pages and hold the token."""
        require_same_origin(request)
        visitor = await self.visitor(request)
        sent = request.headers.get("x-csrf-token") or (await request.form()).get("csrf_token") or ""
        if not hmac.compare_digest(str(sent).encode(), visitor.csrf_token.encode()):
            raise PermissionError_("this form is out of date; reload the page and try again", code="csrf_failed")
        return visitor

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
            path=request.url.path,
            visitor=visitor,
            has_accounts=self.sessions is not None,
            pages=[page for page in PAGES if self._shows(page, visitor)],
            **values,
        )
        return HTMLResponse(html, status_code=status, headers=headers)

    def _shows(self, page: Page, visitor: Visitor | None) -> bool:
        if visitor is None or (page.of_accounts and self.sessions is None):
            return False
        return page.permission is None or visitor.may(page.permission)


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


def _require(visitor: Visitor, permission: Permission) -> Visitor:
    if not visitor.may(permission):
        raise PermissionError_(f'this page needs the permission "{permission}"')
    return visitor
