"""The Users page: people, what they may do and by which groups, and who is signed in now."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.sessions import Visitor
from wootz.console.site import Site


def add_routes(router: APIRouter, site: Site) -> None:
    if site.sessions is None or site.people is None:
        return
    sessions, people = site.sessions, site.people

    @router.get("/users")
    async def show_users(request: Request, visitor: Visitor = Depends(site.allowed("people"))) -> Response:
        config = site.gateway.config.identity
        return site.page(
            "users.html",
            request,
            visitor,
            people=await people.list(),
            num_members={group.name: len(group.members) for group in await people.groups()},
            mapping=config.groups,
            issuer=config.oidc.issuer if config.oidc else None,
            sessions=await sessions.list(),
            key_names={key.id: key.name for key in await sessions.keys.list()},
        )

    @router.post("/users/sessions/{session_id}/end")
    async def end_session(session_id: str, _: Visitor = Depends(site.acting("people"))) -> Response:
        await sessions.end(session_id)
        return RedirectResponse("/users", status_code=303)
