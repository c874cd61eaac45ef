"""The Alerts page: what is wrong, since when, what was done about it, and what to read. For who may operate."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.sessions import Visitor
from wootz.console.site import Site

SILENT_HOURS = {"1": "an hour", "4": "4 hours", "24": "a day", "168": "a week"}
LATELY = 30
"""How many of those that are over are listed."""


def add_routes(router: APIRouter, site: Site) -> None:
    incidents, rules = site.gateway.incidents, site.gateway.alert_rules

    sees, acts = site.allowed("operate"), site.acting("operate")

    @router.get("/alerts")
    async def show_alerts(request: Request, visitor: Visitor = Depends(sees)) -> Response:
        return site.page(
            "alerts.html",
            request,
            visitor,
            open=await incidents.list(("open",)),
            over=await incidents.list(("resolved",), limit=LATELY),
            silences=await incidents.silences(),
            rules=rules,
            acting=site.gateway.config.alerts.acting,
        )

    @router.get("/alerts/{incident_id}")
    async def show_incident(request: Request, incident_id: str, visitor: Visitor = Depends(sees)) -> Response:
        incident = await incidents.get(incident_id)
        names = await site.key_names(visitor)
        return site.page(
            "alert.html",
            request,
            visitor,
            incident=incident,
            rule=rules.get(incident.rule),
            notices=await incidents.notices(incident.id),
            key_names=names,
            hours=SILENT_HOURS,
            runbook_url=site.gateway.config.alerts.runbook_url,
        )

    @router.post("/alerts/silences/{silence_id}/end")
    async def end_silence(silence_id: str, _: Visitor = Depends(acts)) -> Response:
        await incidents.end_silence(silence_id)
        return RedirectResponse("/alerts", status_code=303)

    @router.post("/alerts/{incident_id}/acknowledge")
    async def acknowledge(incident_id: str, visitor: Visitor = Depends(acts)) -> Response:
        await incidents.acknowledge(incident_id, by=_name(visitor))
        return RedirectResponse(f"/alerts/{incident_id}", status_code=303)

    @router.post("/alerts/{incident_id}/silence")
    async def silence(request: Request, incident_id: str, visitor: Visitor = Depends(acts)) -> Response:
        """Of this rule and this subject."""
        form, incident = await request.form(), await incidents.get(incident_id)
        hours = str(form.get("hours"))
        lasting = timedelta(hours=int(hours) if hours in SILENT_HOURS else 1)
        why = str(form.get("why") or "").strip() or "-"
        await incidents.silence(incident.rule, incident.subject, lasting, why=why, by=_name(visitor))
        return RedirectResponse("/alerts", status_code=303)


def _name(visitor: Visitor) -> str:
    return visitor.key.name if visitor.key else "somebody"
