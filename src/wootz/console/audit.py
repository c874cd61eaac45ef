"""The Audit page: what was done, by whom, and whether the log still holds."""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.sessions import Visitor
from wootz.console.site import Site

PAGE = 50
KINDS = ("session", "key", "user", "group", "team", "tag", "secret", "body", "admin", "cache", "person")


def add_routes(router: APIRouter, site: Site) -> None:
    if site.sessions is None:
        return
    log, keys = site.gateway.audit, site.sessions.keys

    @router.get("/audit")
    async def show_audit(
        request: Request,
        kind: str = "",
        actor: str = "",
        subject: str = "",
        before: int | None = None,
        verify: bool = False,
        visitor: Visitor = Depends(site.allowed("audit")),
    ) -> Response:
        entries = await log.entries(
            action=f"{kind}." if kind in KINDS else None,
            actor=actor or None,
            subject=subject or None,
            before=before,
            limit=PAGE + 1,
        )
        filters = {"kind": kind, "actor": actor, "subject": subject}
        older = {**filters, "before": entries[PAGE - 1].sequence} if len(entries) > PAGE else None
        names = {key.id: key.name for key in await keys.list()}
        for account_kind in ("user", "team", "tag"):
            names |= {account.id: account.name for account in await keys.list_accounts(account_kind)}
        return site.page(
            "audit.html",
            request,
            visitor,
            entries=entries[:PAGE],
            names=names,
            kinds=KINDS,
            filters=filters,
            older=urlencode({name: value for name, value in older.items() if value}) if older else None,
            head=await log.head(),
            verdict=await log.verify() if verify else None,
        )
