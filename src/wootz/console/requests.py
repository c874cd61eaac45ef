"""The Requests page: the ledger as a table, and one request's record and timeline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.sessions import Visitor
from wootz.console.site import Site
from wootz.console.tracks import tracks
from wootz.core import ConfigError, NotFoundError, PermissionError_
from wootz.core.acting import actor
from wootz.store.secrets import wrapper_of
from wootz.telemetry import BodyStore, RequestRecord
from wootz.telemetry.bodies import StoredBody
from wootz.telemetry.explain import explain
from wootz.telemetry.latency import budget

PAGE = 50
STATUSES = {"ok": range(200, 400), "refused": range(400, 500), "failed": range(500, 600)}
PERIODS = {"15m": timedelta(minutes=15), "1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7)}
WAYS: dict[str, str] = {"retried": "More than one call", "cached": "Answered by a cache", "unpriced": "Price unknown"}


def add_routes(router: APIRouter, site: Site) -> None:
    @router.get("/requests")
    async def list_requests(
        request: Request,
        model: str = "",
        key: str = "",
        status: str = "",
        since: str = "",
        way: str = "",
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
            team_id=visitor.team,
            status=STATUSES.get(status),
            since=datetime.now(UTC) - period if period else None,
            search=q.strip() or None,
            way=way or None,
        )
        filters = {"model": model, "key": key, "status": status, "since": since, "way": way, "q": q}
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
            key_names=await site.key_names(visitor),
            statuses=STATUSES,
            periods=PERIODS,
            ways=WAYS,
        )

    @router.get("/requests/{request_id}")
    async def show_request(
        request: Request, request_id: str, said: bool = False, visitor: Visitor = Depends(site.visitor)
    ) -> Response:
        record = await site.ledger.get(request_id)
        if visitor.confined_to not in (None, record.key_id) or visitor.team not in (None, record.team_id):
            raise NotFoundError(f'no request "{request_id}" in the ledger')
        names = await site.key_names(visitor)
        body, unreadable = None, None
        try:
            body = await read_body(site, visitor, record) if said else None
        except ConfigError as error:
            unreadable = str(error)
        budgets = budget(site.gateway.config.telemetry.latency_budget)
        return site.page(
            "request.html",
            request,
            visitor,
            record=record,
            key_names=names,
            tracks=tracks(record),
            words=explain(record, site.gateway.telemetry.prices, budgets, names),
            may_read=await may_read(site, visitor, record),
            body=body,
            unreadable=unreadable,
            said=said,
        )


async def may_read(site: Site, visitor: Visitor, record: RequestRecord) -> bool:
    """What was said: one's own, or with the permission for it and for data of that class."""
    if visitor.key is None or visitor.key.id == record.key_id:
        return True
    if not visitor.may("bodies") or site.sessions is None:
        return False
    classes = site.gateway.config.identity.data_classes
    try:
        held = (await site.sessions.keys.get(record.key_id or "")).standing.rank(classes)
    except NotFoundError:
        held = len(classes) - 1
    return not classes or visitor.key.standing.clearance(classes) >= held


async def read_body(site: Site, visitor: Visitor, record: RequestRecord) -> StoredBody | None:
    """Every reading leaves a row in the audit log, first. Raises `PermissionError_`, and `ConfigError` for one that
    does not open."""
    if not await may_read(site, visitor, record):
        raise PermissionError_("what others asked and were answered is not yours to read")
    await site.gateway.audit.append(actor=actor(), action="body.read", subject=record.request_id)
    return await BodyStore(site.ledger.database, wrapper_of(site.gateway.config)).get(record)
