"""``/admin/alerts`` and ``/admin/silences`` for administrators, and ``/v1/signals`` for who knows how it went."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from wootz.core import PermissionError_
from wootz.gateway.gateway import Gateway
from wootz.telemetry.alerts import IncidentRow, SilenceRow, told
from wootz.telemetry.signals import Signals

OF_APPLICATIONS = ("resolved",)
"""What any caller may say of its own traffic; the rest is said by an administrator's key: a guard, a grader."""


class IncidentList(BaseModel):
    data: list[dict[str, Any]]


class SilenceRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rule: str | None = Field(default=None, max_length=60)
    subject: str | None = Field(default=None, max_length=500)
    hours: float = Field(gt=0, le=24 * 90)
    why: str = Field(min_length=1, max_length=500)


class SilenceInfo(BaseModel):
    id: str
    rule: str | None
    subject: str | None
    until: datetime
    why: str
    created_by: str

    @classmethod
    def of(cls, row: SilenceRow) -> SilenceInfo:
        return cls(**{name: getattr(row, name) for name in cls.model_fields})


class SilenceList(BaseModel):
    data: list[SilenceInfo]


class SignalRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: str = Field(max_length=50)
    value: float = Field(default=1.0, ge=-1e9, le=1e9, allow_inf_nan=False)
    subject: str | None = Field(default=None, max_length=200)
    model: str | None = Field(default=None, max_length=200)
    user: str | None = Field(default=None, max_length=200)


class Noted(BaseModel):
    status: Literal["noted"] = "noted"


def add_routes(router: APIRouter, gateway: Gateway) -> None:
    signals = Signals(gateway.database)

    @router.post("/v1/signals", status_code=202)
    async def note_signal(request: Request, body: SignalRequest) -> Noted:
        """How it went: a conversation was resolved; from administrators also grades and trips."""
        key = request.state.key
        if body.kind not in OF_APPLICATIONS and not (key is None or key.is_admin):
            raise PermissionError_(f'signals of the kind "{body.kind}" need a key with the scope "admin"', param="kind")
        user = key.user.id if key is not None and key.user is not None else body.user
        await signals.note(
            body.kind, body.value, subject=body.subject, model=body.model, user=user, key_id=key.id if key else None
        )
        return Noted()


def add_admin_routes(router: APIRouter, gateway: Gateway) -> None:
    incidents, rules = gateway.incidents, gateway.alert_rules

    def tell(row: IncidentRow) -> dict[str, Any]:
        return told(row, rules.get(row.rule))

    @router.get("/admin/alerts")
    async def list_incidents(state: Literal["open", "pending", "resolved"] = "open") -> IncidentList:
        return IncidentList(data=[tell(row) for row in await incidents.list((state,))])

    @router.get("/admin/alerts/{incident_id}")
    async def get_incident(incident_id: str) -> dict[str, Any]:
        return tell(await incidents.get(incident_id))

    @router.post("/admin/alerts/{incident_id}/acknowledge")
    async def acknowledge(request: Request, incident_id: str) -> dict[str, Any]:
        """Somebody is on it: it is not told again."""
        return tell(await incidents.acknowledge(incident_id, by=who(request)))

    @router.get("/admin/silences")
    async def list_silences() -> SilenceList:
        return SilenceList(data=[SilenceInfo.of(row) for row in await incidents.silences()])

    @router.post("/admin/silences", status_code=201)
    async def silence(request: Request, body: SilenceRequest) -> SilenceInfo:
        """Incidents are recorded meanwhile, but not told and not acted on."""
        lasting = timedelta(hours=body.hours)
        row = await incidents.silence(body.rule, body.subject, lasting, why=body.why, by=who(request))
        return SilenceInfo.of(row)

    @router.delete("/admin/silences/{silence_id}")
    async def end_silence(silence_id: str) -> SilenceInfo:
        return SilenceInfo.of(await incidents.end_silence(silence_id))

    def who(request: Request) -> str:
        return request.state.key.name if request.state.key is not None else "somebody"
