"""What the rules would have said of what was: the ledger's past, looked at in steps, with nobody told and nothing done.

For tuning a threshold (`wootz alerts replay --last 7d`), and for the tests that prove each alert on an incident.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from wootz.telemetry.alerts.evaluate import Baselines, evaluate
from wootz.telemetry.alerts.incidents import IncidentRow, advance
from wootz.telemetry.alerts.measures import begun
from wootz.telemetry.alerts.rules import Rule


async def replay(
    session: AsyncSession, rules: Mapping[str, Rule], since: datetime, until: datetime, step: timedelta
) -> list[IncidentRow]:
    """The incidents that were opened, in order. A rule is looked at every ``step``, or as rarely as it says itself."""
    rules = {name: rule for name, rule in rules.items() if rule.enabled and await begun(session, rule) is not None}
    live: dict[str, dict[str, IncidentRow]] = {name: {} for name in rules}
    due = dict.fromkeys(rules, since)
    opened: list[IncidentRow] = []
    baselines, now = Baselines(), since
    while now <= until:
        for name, rule in rules.items():
            if due[name] > now:
                continue
            due[name] = now + rule.every
            change = advance(rule, live[name], await evaluate(session, rule, now, baselines), now)
            live[name] |= {incident.subject: incident for incident in change.new}
            for over in (*change.dropped, *change.resolved):
                del live[name][over.subject]
            opened += change.opened
        now += step
    return opened
