"""The Requests page: the ledger as a table, and one request's record and timeline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.sessions import Visitor
from wootz.console.site import Site
from wootz.core import NotFoundError

PAGE = 50
STATUSES = {"ok": range(200, 400), "refused": range(400, 500), "failed": range(500, 600)}
PERIODS = {"15m": timedelta(minutes=15), "1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7)}


def add_routes(router: APIRouter, site: Site) -> None:
    async def key_names(visitor: Visitor) -> dict[str, str]:
        """The names this visitor may see: an admin everyone's, else their own."""
        if site.sessions is None or visitor.key is None:
            return {}
        keys = await site.sessions.keys.list() if visitor.is_admin else [visitor.key]
        return {key.id: key.name for key in keys}

    @router.get("/requests")
    async def list_requests(
        request: Request,
        model: str = "",
        key: str = "",
        status: str = "",
        since: str = "",
        q: str = "",
        before: str = "",
        visitor: Visitor = Depends(site.visitor),
    ) -> Response:
        period = PERIODS.get(since)
        found = await site.ledger.list(
            limit=PAGE + 1,
            before=before or None,
            model=model or None,
            key_id=visitor.confined_to or key or None,
            status=STATUSES.get(status),
            since=datetime.now(UTC) - period if period else None,
            search=q.strip() or None,
        )
        filters = {"model": model, "key": key, "status": status, "since": since, "q": q}
        older = {**filters, "before": found[PAGE - 1].request_id} if len(found) > PAGE else None
        return site.page(
            "requests.html",
            request,
            visitor,
            records=found[:PAGE],
            filters=filters,
            before=before,
            older=urlencode({name: value for name, value in older.items() if value}) if older else None,
            models=site.gateway.visible_models(visitor.key),
            key_names=await key_names(visitor),
            statuses=STATUSES,
            periods=PERIODS,
        )

    @router.get("/requests/{request_id}")
    async def show_request(request: Request, request_id: str, visitor: Visitor = Depends(site.visitor)) -> Response:
        record = await site.ledger.get(request_id)
        if visitor.confined_to not in (None, record.key_id):
            raise NotFoundError(f'no request "{request_id}" in the ledger')
        return site.page("request.html", request, visitor, record=record, key_names=await key_names(visitor))
