"""Cost reports: exact totals of the ledger, grouped and summed by the database as integers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from sqlalchemy import ColumnElement, Table, case, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from wootz.core import BadRequestError


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


async def cost_report(
    session: AsyncSession, requests: Table, by: Sequence[str], since: datetime | None
) -> list[ReportRow]:
    """Costliest group first. ``by`` empty gives one row, the grand total, even when there was nothing.

    Raises `BadRequestError` for a name that nothing can be grouped by.
    """
    c = requests.c
    names = list(dict.fromkeys(by))
    groups = [_grouping(name, requests, session.get_bind().dialect.name) for name in names]
    total_cost = func.coalesce(func.sum(c.cost), 0, type_=c.cost.type)
    query = select(
        *groups,
        func.count(),
        func.coalesce(func.sum(case(((c.status >= 400) & (c.status != 499), 1), else_=0)), 0),
        *(func.coalesce(func.sum(tokens), 0) for tokens in (c.prompt_tokens, c.cached_tokens, c.completion_tokens)),
        total_cost,
    )
    query = query.group_by(*groups).order_by(total_cost.desc(), *groups)
    if since is not None:
        query = query.where(c.started_at >= since)
    rows = []
    for row in await session.execute(query):
        count, errors, prompt, cached, completion, cost = row[len(names) :]
        rows.append(
            ReportRow(
                group=dict(zip(names, row, strict=False)),
                requests=count,
                errors=int(errors),
                prompt_tokens=int(prompt),
                cached_tokens=int(cached),
                completion_tokens=int(completion),
                cost=cost,
            )
        )
    return rows


GROUPS = {"key": "key_id", "model": "model", "route": "route", "user": "user", "provider": "provider", "day": None}
"""What a report can be grouped by, and the ledger's column for it."""


def _grouping(name: str, requests: Table, dialect: str) -> ColumnElement[str | None]:
    if name not in GROUPS:
        raise BadRequestError(f'can\'t report by "{name}"', param="by", hint=f"use any of {', '.join(GROUPS)}")
    if column := GROUPS[name]:
        return requests.c[column]
    started_at = requests.c.started_at
    if dialect == "sqlite":
        return func.strftime("%Y-%m-%d", started_at)
    return func.to_char(func.timezone("UTC", started_at), "YYYY-MM-DD")


def parse_period(text: str) -> timedelta:
    """``7d``, ``12h``, ``30m`` or ``2w``, as `wootz cost report --last` takes it. Raises `BadRequestError`."""
    match = re.fullmatch(r"(\d{1,5})([mhdw])", text.strip())
    if match is None:
        raise BadRequestError(f'"{text}" is no period', param="last", hint="write for example 7d, 12h, 30m or 2w")
    unit = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}[match[2]]
    return timedelta(**{unit: int(match[1])})
