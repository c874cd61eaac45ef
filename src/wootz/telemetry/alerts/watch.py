"""The watch: every few seconds it looks at the rules that are due, tells of what changed, and acts where it may.

Each process has one, and each notes how its own part stands (`Signals`); one of them, by a lease in the database,
evaluates, tells and acts. What it finds it writes in one transaction with the lease, so a process that was replaced
while it was looking writes nothing, and an incident is opened once however many look.

Nothing here is lost by a kill -9: what is to be told is a row, what is to be done is a state of the incident.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from wootz.core import UnavailableError, WootzError
from wootz.store import Database
from wootz.store.lease import Lease
from wootz.telemetry.alerts.actions import Actor
from wootz.telemetry.alerts.evaluate import Baselines, Finding, evaluate
from wootz.telemetry.alerts.incidents import Change, IncidentRow, Incidents, SilenceRow, advance, resolve
from wootz.telemetry.alerts.measures import culprit
from wootz.telemetry.alerts.notices import Links, Messenger, notices_of, postable_alerts
from wootz.telemetry.alerts.rules import Rule
from wootz.telemetry.signals import Signals

log = logging.getLogger(__name__)

REMIND = timedelta(hours=1)
"""A critical incident that nobody has acknowledged is told again after this long."""
PUSH_EVERY = timedelta(seconds=60)
SWEEP_EVERY = timedelta(hours=1)
LEASE = timedelta(seconds=60)


class Audit(Protocol):
    """`AuditLog.append`."""

    def __call__(
        self, *, actor: str, action: str, subject: str, detail: Mapping[str, Any], session: AsyncSession | None
    ) -> Awaitable[object]: ...


@dataclass
class Watch:
    """``actors`` by the names that rules use; those in ``acting`` act, the others only plan. ``look_around`` notes how
    this process's own part stands."""

    database: Database
    rules: Mapping[str, Rule]
    messenger: Messenger
    holder: str
    audit: Audit
    actors: Mapping[str, Actor]
    acting: Sequence[str] = ()
    links: Links = field(default_factory=lambda: Links("docs/operations/{runbook}.md"))
    alertmanager: str | None = None
    look_around: Callable[[Signals], Awaitable[None]] | None = None
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __post_init__(self) -> None:
        self.lease = Lease(self.database, "alerts", self.holder, LEASE, self.clock)
        self.signals = Signals(self.database, self.clock)
        self.leads = False
        self._baselines = Baselines()
        self._due: dict[str, datetime] = {}
        self._pushed = self._swept = datetime(1970, 1, 1, tzinfo=UTC)

    async def run(self, every: float) -> None:
        """For ever. A database that is away is waited for; the ledger has its own way to get over that."""
        try:
            while True:
                try:
                    await self.tick()
                except UnavailableError as error:
                    log.warning("alerts: %s", error)
                except Exception:
                    log.exception("alerts: this look failed")
                await asyncio.sleep(every)
        finally:
            if self.leads:
                with suppress(Exception):
                    await self.lease.give_up()

    async def tick(self) -> None:
        await self._look_around()
        self.leads = await self.lease.take()
        if not self.leads:
            return
        now = self.clock()
        findings = await self._look(now)
        await self._write(findings, now)
        await self._act()
        await self.messenger.deliver(self.clock)
        if self.alertmanager and now - self._pushed >= PUSH_EVERY:
            await self._push(self.alertmanager, now)
        if now - self._swept >= SWEEP_EVERY:
            self._swept = now
            await self.signals.forget_old()
            await self.messenger.forget_old(now)
            await Incidents(self.database, self.clock).forget_old()

    # --- seeing -------------------------------------------------------------------------------------------------

    async def _look_around(self) -> None:
        """What this process can't tell of itself keeps no rule from being looked at."""
        try:
            if self.look_around is not None:
                await self.look_around(self.signals)
        except Exception as error:
            known = isinstance(error, WootzError)
            log.warning("alerts: how this process stands is not noted: %s", error, exc_info=not known)

    async def _look(self, now: datetime) -> dict[str, list[Finding]]:
        findings: dict[str, list[Finding]] = {}
        for name, rule in self.rules.items():
            if rule.enabled and self._due.get(name, now) <= now:
                # A session each: no transaction is open for as long as all of them together take.
                async with self.database.session() as session:
                    findings[name] = await evaluate(session, rule, now, self._baselines)
                self._due[name] = now + rule.every
        return findings

    async def _write(self, findings: Mapping[str, Sequence[Finding]], now: datetime) -> None:
        async with self.database.session() as session:
            if not await self.lease.take(session):
                return
            alive = [*await session.scalars(select(IncidentRow).where(IncidentRow.live.is_not(None)))]
            silences = [*await session.scalars(select(SilenceRow).where(SilenceRow.until > now))]
            for name, found in findings.items():
                live = {one.subject: one for one in alive if one.rule == name}
                change = advance(self.rules[name], live, found, now)
                await self._keep(session, change)
                alive += change.new
                for incident in change.opened:
                    incident.detail = incident.detail | await self._who(session, incident, now)
                for incident in change.dropped:
                    alive.remove(incident)
            for incident in alive:
                rule = self.rules.get(incident.rule)
                if rule is None or not rule.enabled:  # Nobody looks any more whether it is over.
                    if incident.state == "pending":
                        await session.delete(incident)
                        continue
                    resolve(incident, now)
                if not any(silence.covers(incident) for silence in silences):
                    self._tell(session, incident, now)

    async def _keep(self, session: AsyncSession, change: Change) -> None:
        session.add_all(change.new)
        for incident in change.dropped:
            await session.delete(incident)
        await session.flush()

    async def _who(self, session: AsyncSession, incident: IncidentRow, now: datetime) -> dict[str, Any]:
        """For what may be limited: who has most of it. Found when it opens: later, the limit is in the numbers."""
        rule = self.rules[incident.rule]
        if rule.action != "limit_caller":
            return {}
        who = await culprit(session, rule, incident.subject, now - rule.window, now)
        return {"culprit": who} if who else {}

    def _tell(self, session: AsyncSession, incident: IncidentRow, now: datetime) -> None:
        if incident.state == "pending":
            return
        if incident.state == "resolved":
            # Who never heard of it (it was silenced) need not hear that it is over.
            event = "incident.resolved" if incident.told_at else None
        elif incident.told_at is None:
            event = "incident.opened"
        else:
            late = incident.severity == "critical" and now - incident.told_at >= REMIND
            event = "incident.reminded" if late and incident.acknowledged_at is None else None
        if event is not None:
            rule, receivers = self.rules.get(incident.rule), self.messenger.receivers.values()
            session.add_all(notices_of(event, incident, rule, receivers, self.links, now))
            incident.told_at = now

    # --- acting -------------------------------------------------------------------------------------------------

    async def _act(self) -> None:
        """What is to be undone, in any case; then what is due, unless it is silenced."""
        waiting = select(IncidentRow).where(IncidentRow.action_state.in_(("due", "undo")))
        waiting = waiting.order_by(IncidentRow.action_state.desc())
        held = select(SilenceRow).where(SilenceRow.until > self.clock())
        async with self.database.session() as session:
            incidents, silences = [*await session.scalars(waiting)], [*await session.scalars(held)]
        for incident in incidents:
            if incident.action_state == "due" and any(silence.covers(incident) for silence in silences):
                continue
            try:
                if incident.action_state == "due":
                    await self._do(incident)
                else:
                    await self._undo(incident)
            except UnavailableError:
                raise
            except Exception as error:
                log.exception("alerts: %s of incident %s failed", incident.action, incident.id)
                await self._note(incident, "failed", {"problem": f"{type(error).__name__}: {error}"[:300]})

    async def _do(self, incident: IncidentRow) -> None:
        actor = self.actors.get(incident.action or "")
        if actor is None:
            return await self._note(incident, "dry-run", {"what": f"nobody here can {incident.action}"})
        if not incident.action_detail.get("steps"):
            plan = await actor.plan(incident)
            if not plan.steps:
                return await self._note(incident, "none", {"what": plan.what})
            if incident.action not in self.acting:
                return await self._note(incident, "dry-run", {"what": f"would {plan.what}"})
            # Kept before it is carried out: who dies in between leaves what is needed to go on, and to undo it.
            await self._note(incident, "due", {"what": plan.what, "steps": dict(plan.steps)})
        await actor.do(incident.action_detail["steps"])
        await self._note(incident, "done", incident.action_detail)

    async def _undo(self, incident: IncidentRow) -> None:
        actor, steps = self.actors.get(incident.action or ""), incident.action_detail.get("steps")
        if actor is not None and steps:
            await actor.undo(steps)
        await self._note(incident, "undone", incident.action_detail)

    async def _note(self, incident: IncidentRow, state: str, detail: Mapping[str, Any]) -> None:
        # The incident's words may name a person, whom the audit log could not forget; the steps name ids.
        said = {"rule": incident.rule, "steps": detail.get("steps", {})}
        async with self.database.session() as session:
            row = await session.get_one(IncidentRow, incident.id)
            was, row.action_state, row.action_detail = row.action_state, state, dict(detail)
            incident.action_state, incident.action_detail = state, dict(detail)
            if state != was:
                name = f"alert.{incident.action}.{state}"
                await self.audit(actor="alerts", action=name, subject=incident.id, detail=said, session=session)

    async def _push(self, alertmanager: str, now: datetime) -> None:
        """All that is open and not silenced, and what ended lately, for an Alertmanager that missed it."""
        lately = (IncidentRow.state == "open") | (IncidentRow.resolved_at > now - 5 * PUSH_EVERY)
        async with self.database.session() as session:
            silences = [*await session.scalars(select(SilenceRow).where(SilenceRow.until > now))]
            incidents = [*await session.scalars(select(IncidentRow).where(lately))]
        heard = [one for one in incidents if not any(silence.covers(one) for silence in silences)]
        body = json.dumps(postable_alerts(heard, self.rules, self.links, now, PUSH_EVERY)).encode()
        self._pushed = now
        try:
            status = await self.messenger.post(f"{alertmanager.rstrip('/')}/api/v2/alerts", body)
        except OSError as error:
            log.warning("alerts: the Alertmanager is out of reach (%s)", type(error).__name__)
        else:
            if status != 200:
                log.warning("alerts: the Alertmanager answered %d", status)
