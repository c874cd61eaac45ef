"""Cost reports: exact totals of the ledger, grouped and summed by the database as integers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Table, case, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncSession

from wootz.core import BadRequestError
from wootz.telemetry.conversations import conversations as _conversations


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """``group`` holds one entry per name asked for, in that order; a day is ``YYYY-MM-DD`` in UTC."""

    group: dict[str, str | None]
    requests: int
    errors: int
    """Requests that ended with a status of 400 or more, except 499: the client went away."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: Decimal
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cache_hits: int = 0
    """Requests that one of our own caches answered."""
    attempts: int = 0
    unpriced: int = 0
    """Requests whose cost is not, or not wholly, known."""
    conversations: int = 0
    """In a group that it asked in each, where they were asked for."""
    resolved: float = 0.0
    """How many of them; one may be so in part."""
    conversations_cost: Decimal = Decimal(0)

    @property
    def cost_per_resolved(self) -> Decimal | None:
        """All that was spent on conversations, for each that was resolved; rounded to 12 decimals."""
        if not self.resolved:
            return None
        return (self.conversations_cost / Decimal(str(self.resolved))).quantize(Decimal("1e-12"))


async def cost_report(
    session: AsyncSession,
    requests: Table,
    by: Sequence[str],
    since: datetime | None,
    until: datetime | None = None,
    key_id: str | None = None,
    conversations: bool = False,
) -> list[ReportRow]:
    """Costliest group first. ``by`` empty gives one row, the grand total, even when there was nothing.

    Raises `BadRequestError` for a name that nothing can be grouped by.
    """
    c = requests.c
    names = list(dict.fromkeys(by))
    dialect = session.get_bind().dialect.name
    # Grouped by the names of the result's columns: an expression with a parameter in it is another one when repeated.
    labels = [f"group_{number}" for number in range(len(names))]
    of_labels = {label: grouping(name, requests, dialect) for name, label in zip(names, labels, strict=True)}
    groups = [of.label(label) for label, of in of_labels.items()]
    by_label: list[ColumnElement[Any]] = [literal_column(label) for label in labels]
    total_cost = func.coalesce(func.sum(c.cost), 0, type_=c.cost.type)

    def total(value: ColumnElement[Any]) -> ColumnElement[Any]:
        return func.coalesce(func.sum(value), 0)

    def number(condition: ColumnElement[bool]) -> ColumnElement[Any]:
        return total(case((condition, 1), else_=0))

    sums = {
        "requests": func.count(),
        "errors": number((c.status >= 400) & (c.status != 499)),
        "prompt_tokens": total(c.prompt_tokens),
        "cached_tokens": total(c.cached_tokens),
        "completion_tokens": total(c.completion_tokens),
        "cache_write_tokens": total(c.cache_write_tokens),
        "reasoning_tokens": total(c.reasoning_tokens),
        "cache_hits": number(c.cache.in_(("exact", "semantic", "shared"))),
        "attempts": total(c.num_attempts),
        "unpriced": number(c.priced.is_(False)),
    }
    query = select(*groups, *(value.label(name) for name, value in sums.items()), total_cost.label("total_cost"))
    query = query.group_by(*by_label).order_by(total_cost.desc(), *by_label)
    if since is not None:
        query = query.where(c.started_at >= since)
    if until is not None:
        query = query.where(c.started_at < until)
    if key_id is not None:
        query = query.where(c.key_id == key_id)
    rows = (await session.execute(query)).all()
    talks: dict[tuple[Any, ...], dict[str, Any]] = {}
    if conversations:
        of_key = [] if key_id is None else [c.key_id == key_id]
        one = _conversations(requests, of_labels, since, until, *of_key).c
        in_groups = [one[label] for label in labels]
        of_all = {
            "conversations": func.count(),
            "resolved": total(one.resolved),
            "conversations_cost": func.coalesce(func.sum(one.cost), 0, type_=c.cost.type),
        }
        counted = select(*in_groups, *(value.label(name) for name, value in of_all.items())).group_by(*in_groups)
        talks = {
            tuple(row[: len(names)]): {name: row._mapping[name] for name in of_all}
            for row in await session.execute(counted)
        }
    return [
        ReportRow(
            group=dict(zip(names, row, strict=False)),
            cost=row.total_cost,
            **{name: int(row._mapping[name]) for name in sums},
            **talks.get(tuple(row[: len(names)]), {}),
        )
        for row in rows
    ]


COLUMNS = {
    "key": "key_id",
    "team": "team_id",
    "user": "user",
    "model": "model",
    "deployment": "deployment",
    "provider": "provider",
    "route": "route",
    "cache": "cache",
    "lane": "lane",
    "price": "price",
    "template": "template_hash",
}
TAGS = ("feature", "prompt_version")
TIMES = {"hour": ("%Y-%m-%dT%H:00Z", 'YYYY-MM-DD"T"HH24":00Z"'), "day": ("%Y-%m-%d", "YYYY-MM-DD")}
"""How SQLite and PostgreSQL write them, in UTC."""

GROUPS = (*COLUMNS, *TAGS, *TIMES)
"""What a report can be grouped by; ``tag:NAME`` groups by any other tag."""

_TAG = re.compile(r"tag:([\w.-]{1,128})")


def grouping(name: str, requests: Table, dialect: str) -> ColumnElement[Any]:
    if name in COLUMNS:
        return requests.c[COLUMNS[name]]
    if name in TIMES:
        on_sqlite, on_postgresql = TIMES[name]
        started_at = requests.c.started_at
        if dialect == "sqlite":
            return func.strftime(on_sqlite, started_at)
        return func.to_char(func.timezone("UTC", started_at), on_postgresql)
    tag = name if name in TAGS else (match[1] if (match := _TAG.fullmatch(name)) else None)
    if tag is None:
        known = ", ".join((*GROUPS, "tag:NAME"))
        raise BadRequestError(f'can\'t report by "{name}"', param="by", hint=f"use any of {known}")
    return requests.c.tags[tag].as_string()


def parse_period(text: str) -> timedelta:
    """``7d``, ``12h``, ``30m`` or ``2w``, as `wootz cost report --last` takes it. Raises `BadRequestError`."""
    match = re.fullmatch(r"(\d{1,5})([mhdw])", text.strip())
    if match is None:
        raise BadRequestError(f'"{text}" is no period', param="last", hint="write for example 7d, 12h, 30m or 2w")
    unit = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}[match[2]]
    return timedelta(**{unit: int(match[1])})
