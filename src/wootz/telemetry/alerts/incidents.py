"""Incidents: that a rule fires for a subject, from its beginning to its end, said once.

    (nothing) ── fires ──► pending ── for `hold` ──► open ── clear for `quiet` ──► resolved
                              └─ not any more: forgotten

Between its two thresholds a rule neither fires nor is clear, so a value that trembles at one of them changes nothing.
A rule has one incident of a subject at a time (`live` is unique), whichever process looks, before and after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import JSON, ForeignKey, delete, or_, select
from sqlalchemy.orm import Mapped, mapped_column

from wootz.core import BadRequestError, NotFoundError
from wootz.core.wire import new_id
from wootz.store import Base, Database, UtcDateTime
from wootz.telemetry.alerts.evaluate import Finding
from wootz.telemetry.alerts.rules import Rule

State = Literal["pending", "open", "resolved"]
ActionState = Literal["none", "due", "dry-run", "done", "failed", "undo", "undone"]
MAX_WORDS = 500
RESOLVED_DAYS = 400
"""How long incidents that are over are kept."""


class IncidentRow(Base):
    __tablename__ = "incidents"

    id: Mapped[str] = mapped_column(primary_key=True)
    rule: Mapped[str]
    subject: Mapped[str]
    live: Mapped[str | None] = mapped_column(unique=True)
    state: Mapped[str]
    severity: Mapped[str]
    value: Mapped[float]
    """What was judged, when it was last seen firing: a value, or a ratio."""
    worst: Mapped[float]
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
    began_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    opened_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    clear_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    resolved_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    told_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When it was last told to anybody, so None also while it is silenced."""
    acknowledged_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    acknowledged_by: Mapped[str | None]
    action: Mapped[str | None]
    action_state: Mapped[str]
    action_detail: Mapped[dict[str, Any]] = mapped_column(JSON)


class SilenceRow(Base):
    __tablename__ = "silences"

    id: Mapped[str] = mapped_column(primary_key=True)
    rule: Mapped[str | None]
    subject: Mapped[str | None]
    until: Mapped[datetime] = mapped_column(UtcDateTime)
    why: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)

    def covers(self, incident: IncidentRow) -> bool:
        return self.rule in (None, incident.rule) and self.subject in (None, incident.subject)


class NoticeRow(Base):
    """What is to be told to one receiver, until it has heard it."""

    __tablename__ = "notices"

    id: Mapped[str] = mapped_column(primary_key=True)
    incident_id: Mapped[str] = mapped_column(ForeignKey("incidents.id"))
    receiver: Mapped[str]
    body: Mapped[str]
    attempts: Mapped[int]
    due_at: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    """None when it was delivered, or given up."""
    delivered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    problem: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


@dataclass
class Change:
    """What one look at a rule has changed. Rows of ``new`` are in no session yet."""

    new: list[IncidentRow] = field(default_factory=list)
    dropped: list[IncidentRow] = field(default_factory=list)
    opened: list[IncidentRow] = field(default_factory=list)
    resolved: list[IncidentRow] = field(default_factory=list)


def advance(rule: Rule, live: Mapping[str, IncidentRow], findings: Sequence[Finding], now: datetime) -> Change:
    """The state machine above, for one rule: ``live`` are its incidents by subject, which this changes."""
    change = Change()
    found = {finding.subject[:MAX_WORDS]: finding for finding in findings}
    for finding in found.values():
        if finding.subject not in live and finding.is_firing:
            change.new.append(incident := _begin(rule, finding, now))
            _open_if_due(rule, incident, now, change)
    for subject, incident in live.items():
        finding = found.get(subject)
        if finding is not None and finding.is_firing:
            _saw(rule, incident, finding)
        if incident.state == "pending":
            if finding is None or not finding.is_firing:
                change.dropped.append(incident)
            else:
                _open_if_due(rule, incident, now, change)
        elif finding is not None and not finding.is_clear:
            incident.clear_since = None
        else:
            incident.clear_since = clear = incident.clear_since or now
            if now - clear >= rule.quiet:
                resolve(incident, now)
                change.resolved.append(incident)
    return change


def resolve(incident: IncidentRow, now: datetime) -> None:
    incident.state, incident.resolved_at, incident.live = "resolved", now, None
    if incident.action_detail.get("steps") and incident.action_state in ("due", "done", "failed"):
        incident.action_state = "undo"  # Also where it may have been done halfway.
    elif incident.action_state == "due":
        incident.action_state = "none"


def _begin(rule: Rule, finding: Finding, now: datetime) -> IncidentRow:
    subject = finding.subject[:MAX_WORDS]
    return IncidentRow(
        id=new_id("inc"),
        rule=rule.name,
        subject=subject,
        live=f"{rule.name} {subject}",
        state="pending",
        severity=rule.severity,
        value=_finite(finding.judged),
        worst=_finite(finding.judged),
        detail={"value": _finite(finding.value), **finding.detail},
        began_at=now,
        action=rule.action,
        action_state="none",
        action_detail={},
    )


def _saw(rule: Rule, incident: IncidentRow, finding: Finding) -> None:
    incident.value = _finite(finding.judged)
    worse = max if rule.direction == "up" else min
    incident.worst = worse(incident.worst, incident.value)
    incident.detail = incident.detail | {"value": _finite(finding.value), **finding.detail}


def _open_if_due(rule: Rule, incident: IncidentRow, now: datetime, change: Change) -> None:
    if now - incident.began_at >= rule.hold:
        incident.state, incident.opened_at = "open", now
        incident.action_state = "due" if rule.action else "none"
        change.opened.append(incident)


def _finite(value: float) -> float:
    """JSON and databases have no infinity."""
    return max(-1e18, min(1e18, value))


class Incidents:
    """For people: what there is, and what they say to it."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.database, self._clock = database, clock

    async def list(self, states: Iterable[State] = ("open",), limit: int = 100) -> list[IncidentRow]:
        """The newest first."""
        query = select(IncidentRow).where(IncidentRow.state.in_(tuple(states)))
        async with self.database.session() as session:
            return [*await session.scalars(query.order_by(IncidentRow.began_at.desc(), IncidentRow.id).limit(limit))]

    async def get(self, incident_id: str) -> IncidentRow:
        """By its id, or a beginning of it that no other has. Raises `NotFoundError`."""
        starts = IncidentRow.id.startswith(incident_id[:64].replace("\0", ""), autoescape=True)
        async with self.database.session() as session:
            found = [*await session.scalars(select(IncidentRow).where(starts).limit(2))]
        if len(found) != 1 or not incident_id:
            raise NotFoundError(f'no incident "{incident_id[:64]}"' if not found else "more than one begins like that")
        return found[0]

    async def notices(self, incident_id: str) -> list[NoticeRow]:
        query = select(NoticeRow).where(NoticeRow.incident_id == incident_id).order_by(NoticeRow.created_at)
        async with self.database.session() as session:
            return [*await session.scalars(query)]

    async def acknowledge(self, incident_id: str, by: str) -> IncidentRow:
        """Somebody is on it: it is not told again. The first one stays."""
        found = await self.get(incident_id)
        async with self.database.session() as session:
            incident = await session.get_one(IncidentRow, found.id)
            if incident.acknowledged_at is None:
                incident.acknowledged_at, incident.acknowledged_by = self._clock(), _words(by)
        return incident

    async def silence(
        self, rule: str | None, subject: str | None, lasting: timedelta, *, why: str, by: str
    ) -> SilenceRow:
        """Incidents of the rule, the subject, or both are recorded, but not told and not acted on, for a while."""
        if rule is None and subject is None:
            raise BadRequestError("a silence names a rule, a subject, or both", param="rule")
        now = self._clock()
        row = SilenceRow(
            id=new_id("silence"),
            rule=rule and _words(rule),
            subject=subject and _words(subject),
            until=now + lasting,
            why=_words(why),
            created_by=_words(by),
            created_at=now,
        )
        async with self.database.session() as session:
            session.add(row)
        return row

    async def silences(self) -> list[SilenceRow]:
        """Those that hold now."""
        query = select(SilenceRow).where(SilenceRow.until > self._clock()).order_by(SilenceRow.until)
        async with self.database.session() as session:
            return [*await session.scalars(query)]

    async def end_silence(self, silence_id: str) -> SilenceRow:
        """Raises `NotFoundError`."""
        async with self.database.session() as session:
            row = await session.get(SilenceRow, silence_id[:64].replace("\0", ""))
            if row is None:
                raise NotFoundError(f'no silence "{silence_id[:64]}"')
            row.until = min(row.until, self._clock())
        return row

    async def forget_old(self) -> None:
        before = self._clock() - timedelta(days=RESOLVED_DAYS)
        old = select(IncidentRow.id).where(IncidentRow.resolved_at < before)
        async with self.database.session() as session:
            await session.execute(delete(NoticeRow).where(NoticeRow.incident_id.in_(old)))
            await session.execute(delete(IncidentRow).where(IncidentRow.resolved_at < before))
            await session.execute(delete(SilenceRow).where(or_(SilenceRow.until < before)))


def _words(text: str) -> str:
    return text[:MAX_WORDS].replace("\0", "?")
