"""Who is told of an incident: webhooks, signed and tried until they answer, and an Alertmanager.

A notice is a row, written in the same transaction as what it tells of, so neither a crash nor a receiver that is down
loses one. It is delivered at least once, always under the same id, by which a receiver knows it again. Signatures are
those of Standard Webhooks (https://www.standardwebhooks.com), so receivers can use its libraries.

An Alertmanager is told differently, as Prometheus does it: all that is open, again and again, each with an end that
moves on; what it is not told of any more ends by itself (https://prometheus.io/docs/alerting/latest/clients/).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select, update

from wootz.core.wire import new_id
from wootz.store import Database
from wootz.telemetry.alerts.incidents import IncidentRow, NoticeRow
from wootz.telemetry.alerts.rules import SEVERITIES, Rule, Severity

log = logging.getLogger(__name__)

Post = Callable[[str, bytes, Mapping[str, str], bool], Awaitable[int]]
"""URL, body, headers, whether private addresses are meant; gives the status, or raises `OSError`. It follows no
redirects and answers within seconds."""

FIRST_PAUSE, LONGEST_PAUSE, MOST_ATTEMPTS = timedelta(seconds=10), timedelta(hours=1), 15
"""Tried for about nine hours: a night."""
AT_ONCE = 50
"""Notices for one receiver in one look."""
DELIVERY_SECONDS = 20.0
"""For all of a look together: well within the watch's lease, so that nobody else posts the same meanwhile."""
KEPT_DAYS = 30
OUTLIVES_PUSHES = 4
"""An alert that is not pushed any more ends after so many pushes would have been."""


@dataclass(frozen=True)
class Receiver:
    name: str
    url: str
    secret: bytes
    least_severity: Severity
    private: bool

    def wants(self, incident: IncidentRow) -> bool:
        return SEVERITIES.index(incident.severity) >= SEVERITIES.index(self.least_severity)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Links:
    """Where notices point to: ``runbook`` with ``{runbook}`` in it, and the console's address."""

    runbook: str
    console: str | None = None

    def of(self, rule: Rule | None, incident: IncidentRow) -> dict[str, str]:
        links = {} if rule is None else {"runbook": self.runbook.replace("{runbook}", rule.runbook)}
        return links | ({"console": f"{self.console.rstrip('/')}/alerts/{incident.id}"} if self.console else {})


def told(incident: IncidentRow, rule: Rule | None) -> dict[str, Any]:
    """An incident as receivers, `wootz alerts show --json` and the admin's routes tell it."""

    def text(moment: datetime | None) -> str | None:
        return moment.isoformat() if moment else None

    action = {"what": incident.action_detail.get("what"), "problem": incident.action_detail.get("problem")}
    return {
        "id": incident.id,
        "rule": incident.rule,
        "about": rule.about if rule else None,
        "severity": incident.severity,
        "subject": incident.subject,
        "state": incident.state,
        "value": incident.value,
        "worst": incident.worst,
        "detail": incident.detail,
        "began_at": text(incident.began_at),
        "opened_at": text(incident.opened_at),
        "resolved_at": text(incident.resolved_at),
        "acknowledged_by": incident.acknowledged_by,
        "action": incident.action and {"name": incident.action, "state": incident.action_state, **action},
    }


def notices_of(
    event: str, incident: IncidentRow, rule: Rule | None, receivers: Iterable[Receiver], links: Links, now: datetime
) -> list[NoticeRow]:
    """``event``: ``incident.opened``, ``.reminded`` or ``.resolved``."""
    body = {"type": event, "timestamp": now.isoformat(), "data": told(incident, rule) | links.of(rule, incident)}
    return [
        NoticeRow(
            id=new_id("msg"),
            incident_id=incident.id,
            receiver=receiver.name,
            body=json.dumps(body),
            attempts=0,
            due_at=now,
            created_at=now,
        )
        for receiver in receivers
        if receiver.wants(incident)
    ]


def signed(receiver: Receiver, notice_id: str, body: bytes, now: datetime) -> dict[str, str]:
    """The headers of Standard Webhooks, symmetric: HMAC-SHA256 over id, time and body."""
    seconds = str(int(now.timestamp()))
    signature = hmac.new(receiver.secret, b".".join((notice_id.encode(), seconds.encode(), body)), hashlib.sha256)
    return {
        "content-type": "application/json",
        "webhook-id": notice_id,
        "webhook-timestamp": seconds,
        "webhook-signature": f"v1,{base64.b64encode(signature.digest()).decode()}",
    }


def secret_bytes(secret: str) -> bytes:
    """``whsec_`` and base64, as Standard Webhooks writes them; any other text counts as it is."""
    return base64.b64decode(secret.removeprefix("whsec_")) if secret.startswith("whsec_") else secret.encode()


class Messenger:
    def __init__(self, database: Database, receivers: Sequence[Receiver], post: Post) -> None:
        self.database, self.receivers, self._post = database, {one.name: one for one in receivers}, post

    async def post(self, url: str, body: bytes) -> int:
        """To a service of ours, unsigned."""
        return await self._post(url, body, {"content-type": "application/json"}, True)

    async def deliver(self, clock: Callable[[], datetime]) -> None:
        """What is due now, to all receivers at once, to each the oldest first. Who is slow is told the rest next time.
        Receivers that are not in the config any more are told nothing."""
        waiting = select(NoticeRow.receiver).where(NoticeRow.due_at <= clock()).distinct()
        async with self.database.session() as session:
            names = [*await session.scalars(waiting)]
        with suppress(TimeoutError):
            async with asyncio.timeout(DELIVERY_SECONDS):
                chains = (self._deliver_to(name, clock) for name in names)
                for problem in await asyncio.gather(*chains, return_exceptions=True):
                    if problem is not None:
                        raise problem

    async def _deliver_to(self, receiver: str, clock: Callable[[], datetime]) -> None:
        due = select(NoticeRow).where(NoticeRow.receiver == receiver, NoticeRow.due_at <= clock())
        async with self.database.session() as session:
            notices = [*await session.scalars(due.order_by(NoticeRow.due_at).limit(AT_ONCE))]
        for notice in notices:
            problem = await self._try(notice, clock())
            await self._note(notice, problem, clock())

    async def _note(self, notice: NoticeRow, problem: str | None, now: datetime) -> None:
        notice.attempts += 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (notice.attempts - 1))
        gives_up = problem is not None and (notice.attempts >= MOST_ATTEMPTS or notice.receiver not in self.receivers)
        if gives_up:
            log.error("alerts: notice %s is not delivered to %s: %s", notice.id, notice.receiver, problem)
        change = update(NoticeRow).where(NoticeRow.id == notice.id)
        change = change.values(
            attempts=notice.attempts,
            problem=problem,
            due_at=None if problem is None or gives_up else now + pause,
            delivered_at=now if problem is None else None,
        )
        async with self.database.session() as session:
            await session.execute(change)

    async def _try(self, notice: NoticeRow, now: datetime) -> str | None:
        """What went wrong, without the receiver's address, which may hold a token."""
        receiver = self.receivers.get(notice.receiver)
        if receiver is None:
            return "there is no such receiver any more"
        body = notice.body.encode()
        try:
            status = await self._post(receiver.url, body, signed(receiver, notice.id, body, now), receiver.private)
        except OSError as error:
            return type(error).__name__
        return None if 200 <= status < 300 else f"HTTP {status}"

    async def forget_old(self, now: datetime) -> None:
        old = NoticeRow.due_at.is_(None) & (NoticeRow.created_at < now - timedelta(days=KEPT_DAYS))
        async with self.database.session() as session:
            await session.execute(delete(NoticeRow).where(old))


def postable_alerts(
    incidents: Iterable[IncidentRow], rules: Mapping[str, Rule], links: Links, now: datetime, every: timedelta
) -> list[dict[str, Any]]:
    """As ``POST /api/v2/alerts`` of an Alertmanager takes them. What is resolved has its real end."""
    alerts = []
    for incident in incidents:
        rule = rules.get(incident.rule)
        about = links.of(rule, incident)
        annotations = {"summary": f"{incident.subject}: {rule.about if rule else incident.rule}"}
        if "runbook" in about:
            annotations["runbook_url"] = about["runbook"]
        if incident.acknowledged_by:
            annotations["acknowledged_by"] = incident.acknowledged_by
        alerts.append(
            {
                "labels": {
                    "alertname": alert_name(incident.rule),
                    "severity": incident.severity,
                    "subject": incident.subject,
                    "rule": incident.rule,
                },
                "annotations": annotations,
                "startsAt": (incident.opened_at or incident.began_at).isoformat(),
                "endsAt": (incident.resolved_at or now + OUTLIVES_PUSHES * every).isoformat(),
                **({"generatorURL": about["console"]} if "console" in about else {}),
            }
        )
    return alerts


def alert_name(rule: str) -> str:
    """provider-errors -> WootzProviderErrors"""
    return "Wootz" + "".join(word.capitalize() for word in rule.split("-"))
