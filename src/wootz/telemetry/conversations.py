"""What conversations cost, and which of them were resolved: of cost reports, and of the alert rule `resolution-cost`.

A conversation is requests that carry the tag ``conversation``; that it was resolved is a signal of that name, by the
same key: nobody says it of another's traffic, and two applications may both have a conversation 17. All that was spent
counts, on those that were not resolved too.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Subquery, Table, func, literal_column, select

from wootz.telemetry.signals import signals


def conversations(
    requests: Table,
    groups: Mapping[str, ColumnElement[Any]],
    since: datetime | None,
    until: datetime | None,
    *where: ColumnElement[bool],
) -> Subquery:
    """A row for each conversation in each group that it asked in: the groups by their labels, its exact ``cost`` there,
    and how far it was ``resolved``, from 0 to 1."""
    c, s = requests.c, signals.c
    tag = c.tags["conversation"].as_string()
    cost = func.sum(c.cost, type_=c.cost.type).label("cost")
    spent = select(*(of.label(label) for label, of in groups.items()), c.key_id, tag.label("conversation"), cost)
    spent = spent.where(tag.is_not(None), *where)
    ended = select(s.subject, s.key_id, func.max(s.value).label("resolved")).where(s.kind == "resolved")
    if since is not None:
        spent, ended = spent.where(c.started_at >= since), ended.where(s.at >= since)
    if until is not None:
        spent, ended = spent.where(c.started_at < until), ended.where(s.at < until)
    # By the names of the result's columns: an expression with a parameter in it is another one when repeated.
    labels = [literal_column(label) for label in groups]
    one = spent.group_by(*labels, c.key_id, literal_column("conversation")).subquery()
    ends = ended.group_by(s.subject, s.key_id).subquery()
    same = (ends.c.subject == one.c.conversation) & ends.c.key_id.is_not_distinct_from(one.c.key_id)
    resolved = func.coalesce(ends.c.resolved, 0).label("resolved")
    return (
        select(*(one.c[label] for label in groups), one.c.cost, resolved)
        .select_from(one.outerjoin(ends, same))
        .subquery()
    )
