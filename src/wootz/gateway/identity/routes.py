"""``/admin/audit``, ``/admin/users`` and ``/admin/sessions``, erasure, and SCIM: identity by HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from wootz.gateway.entrance import router_with_key
from wootz.gateway.gateway import Gateway
from wootz.gateway.identity.people import People, Person
from wootz.gateway.identity.roles import Role
from wootz.gateway.identity.sessions import Sessions
from wootz.store.audit import Entry, Head


class AuditEntry(BaseModel):
    sequence: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    previous: str
    hash: str

    @classmethod
    def of(cls, entry: Entry) -> AuditEntry:
        return cls(**{name: getattr(entry, name) for name in cls.model_fields})


class AuditList(BaseModel):
    data: list[AuditEntry]


class AuditHead(BaseModel):
    sequence: int = Field(ge=1)
    hash: str = Field(pattern="^[0-9a-f]{64}$")


class VerifyRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kept: list[AuditHead] = Field(default=[], max_length=10_000, description="Heads that were kept elsewhere.")


class AuditVerdict(BaseModel):
    holds: bool
    problem: str | None
    rows: int = Field(description="As far as the chain was found to hold.")
    hash: str


class UserInfo(BaseModel):
    id: str
    name: str
    active: bool
    roles: list[str]
    granted: list[str]
    groups: list[str]

    @classmethod
    def of(cls, person: Person) -> UserInfo:
        groups = sorted({*person.groups.values(), *person.claimed_groups})
        fields = {name: getattr(person, name) for name in ("id", "name", "active", "roles", "granted")}
        return cls(**fields, groups=groups)


class UserList(BaseModel):
    data: list[UserInfo]


class Grant(BaseModel):
    model_config = ConfigDict(extra="forbid")

    roles: list[Role]


class ErasureRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    user: str = Field(min_length=1, max_length=200)


class ErasureReport(BaseModel):
    user: str
    counts: dict[str, int]
    out_of_reach: list[str]


class SessionInfo(BaseModel):
    id: str
    key_id: str
    method: str
    created_at: datetime
    used_at: datetime
    expires_at: datetime


class SessionList(BaseModel):
    data: list[SessionInfo]


def routers(gateway: Gateway) -> Sequence[APIRouter]:
    assert gateway.keys is not None
    from wootz.gateway.identity import scim  # Its library takes a while to load, and only a server needs it.

    people, sessions = People(gateway.keys, gateway.config.identity), Sessions(gateway.keys, gateway.config.identity)
    audit = router_with_key(gateway, "audit", tags=["audit"])
    _add_audit(audit, gateway)
    persons = router_with_key(gateway, "people", tags=["users"])
    _add_people(persons, people, sessions)
    grants = router_with_key(gateway, "accounts", tags=["users"])
    _add_grants(grants, people)
    _add_erasure(grants, gateway)
    return [audit, persons, grants, scim.router(gateway, people)]


def _add_audit(router: APIRouter, gateway: Gateway) -> None:
    log = gateway.audit

    @router.get("/admin/audit")
    async def list_entries(
        actor: str | None = None,
        action: str | None = None,
        subject: str | None = None,
        before: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None,
        limit: int = 50,
    ) -> AuditList:
        """The newest first; ``action`` may be a beginning, such as ``key.``"""
        found = await log.entries(
            actor=actor, action=action, subject=subject, before=before, limit=max(1, min(limit, 1000))
        )
        return AuditList(data=[AuditEntry.of(entry) for entry in found])

    @router.get("/admin/audit/head")
    async def head() -> dict[str, Any]:
        """Keep it where whoever writes to the database can't: a log that was rewritten does not lead through it."""
        return vars(await log.head())

    @router.post("/admin/audit/verify")
    async def verify(body: VerifyRequest) -> AuditVerdict:
        verdict = await log.verify([Head(head.sequence, head.hash) for head in body.kept])
        return AuditVerdict(
            holds=verdict.holds, problem=verdict.problem, rows=verdict.head.sequence, hash=verdict.head.hash
        )

    @router.get("/admin/audit/export", response_class=Response)
    async def export() -> Response:
        """JSON lines, oldest first."""

        async def lines():
            async for line in log.export():
                yield line + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")


def _add_people(router: APIRouter, people: People, sessions: Sessions) -> None:
    @router.get("/admin/people")
    async def list_people() -> UserList:
        return UserList(data=[UserInfo.of(person) for person in await people.list()])

    @router.get("/admin/sessions")
    async def list_sessions() -> SessionList:
        rows = await sessions.list()
        return SessionList(
            data=[SessionInfo(**{name: getattr(row, name) for name in SessionInfo.model_fields}) for row in rows]
        )

    @router.delete("/admin/sessions/{session_id}", status_code=204)
    async def end_session(session_id: str) -> None:
        await sessions.end(session_id)


def _add_erasure(router: APIRouter, gateway: Gateway) -> None:
    from wootz.gateway.identity.erasure import Eraser

    @router.post("/admin/erasures")
    async def erase(body: ErasureRequest) -> ErasureReport:
        """Forget a person in every store: by a user's name or id, or by what requests gave as their ``user``."""
        await gateway.telemetry.ledger.flush()
        report = await Eraser(gateway.database, gateway.config).erase(body.user, gateway.caches)
        if gateway.keys is not None:
            gateway.keys.cache.clear()
        return ErasureReport(user=report.user, counts=report.counts, out_of_reach=list(report.out_of_reach))


def _add_grants(router: APIRouter, people: People) -> None:
    @router.put("/admin/people/{id_or_name:path}/roles")
    async def grant(id_or_name: str, body: Grant) -> UserInfo:
        """Roles besides those of their groups, in the place of those that were granted before."""
        return UserInfo.of(await people.grant(id_or_name, body.roles))
