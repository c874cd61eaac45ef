"""Taking a person out of the alerts: what was about them is deleted, what they dealt with stays under no name."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import Text, and_, cast, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from wootz.telemetry.alerts.incidents import IncidentRow, NoticeRow, SilenceRow
from wootz.telemetry.alerts.rules import Rule
from wootz.telemetry.ledger import ERASED

OF_PERSONS = ("user", "caller")


async def forget_person(
    sql: AsyncSession, names: Collection[str], words: Collection[str], rules: Iterable[Rule]
) -> int:
    """How many rows that were, in the caller's transaction.

    Incidents are about the person by their ``names``; of ``words``, which may be names of their keys, none is left in
    others. ``rules`` tell a person from a model of that name; what a rule told that is gone counts as about a person.
    """
    about = _about(IncidentRow, names, rules)
    theirs = select(IncidentRow.id).where(about)
    await sql.execute(delete(NoticeRow).where(NoticeRow.incident_id.in_(theirs)))
    silences = delete(SilenceRow).where(_about(SilenceRow, names, rules)).returning(SilenceRow.id)
    changed = [*await sql.scalars(silences)]
    changed += await sql.scalars(delete(IncidentRow).where(about).returning(IncidentRow.id))
    silenced = update(SilenceRow).where(SilenceRow.created_by.in_(words)).values(created_by=ERASED)
    changed += await sql.scalars(silenced.returning(SilenceRow.id))

    mentions = or_(*(_mentions(column, words) for column in (IncidentRow.detail, IncidentRow.action_detail)))
    signed = IncidentRow.acknowledged_by.in_(words)
    for incident in await sql.scalars(select(IncidentRow).where(or_(signed, mentions))):
        before = (incident.acknowledged_by, incident.detail, incident.action_detail)
        after = tuple(_without(value, words) for value in before)
        if after != before:
            incident.acknowledged_by, incident.detail, incident.action_detail = after
            changed.append(incident.id)
    for notice in await sql.scalars(select(NoticeRow).where(_mentions(NoticeRow.body, words))):
        before = json.loads(notice.body)
        if (after := _without(before, words)) != before:
            notice.body = json.dumps(after)
            changed.append(notice.id)
    return len(changed)


def _about(table: type[IncidentRow | SilenceRow], names: Collection[str], rules: Iterable[Rule]) -> Any:
    others = [rule.name for rule in rules if rule.by not in OF_PERSONS]
    return and_(table.subject.in_(names), or_(table.rule.is_(None), table.rule.not_in(others)))


def _mentions(column: Any, words: Collection[str]) -> Any:
    """JSON, as the database keeps it."""
    return or_(*(cast(column, Text).contains(json.dumps(word)[1:-1], autoescape=True) for word in words))


def _without(value: Any, words: Collection[str]) -> Any:
    """A word is one where it stands alone, or in quotation marks."""
    if isinstance(value, dict):
        return {name: _without(one, words) for name, one in value.items()}
    if isinstance(value, list):
        return [_without(one, words) for one in value]
    if not isinstance(value, str):
        return value
    if value in words:
        return ERASED
    for word in words:
        value = value.replace(f'"{word}"', f'"{ERASED}"')
    return value
