"""What the gates compare: the ledger's records of both models, in the time that counts, with their users' ratings.

Which model a request was *meant* for is what counts, not which one answered it: a request whose new model failed was
answered by the old one, and is a failure of the new one. In the shadow the new model's requests are the copies.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession

from wootz.gateway.migration.gates import Arm, Gate, judge
from wootz.gateway.migration.store import Migration, Step
from wootz.gateway.migration.tags import ARM, MIGRATION
from wootz.store import Database
from wootz.telemetry.feedback import feedback
from wootz.telemetry.journal import HITS
from wootz.telemetry.ledger import requests

MOST = 5_000
"""Records of each model, the newest: enough to see a difference of one in a hundred."""
PART = 250
"""Rows that are read before requests get their turn again."""
WARM_WINDOW = timedelta(days=1)
"""What is looked at while the old model stands by: a month's average would hide a bad day."""


async def gates_of(database: Database, migration: Migration, steps: list[Step], now: datetime) -> list[Gate]:
    """As they stand now."""
    old, new = await arms(database, migration, steps, now)
    plan = migration.plan
    return await asyncio.to_thread(
        judge,
        old,
        new,
        plan.margins,
        min_samples=plan.min_samples,
        min_ratings=plan.min_ratings,
        shadow=migration.stage == "shadow",
    )


async def arms(database: Database, migration: Migration, steps: list[Step], now: datetime) -> tuple[Arm, Arm]:
    """The old model's, and the new one's."""
    c = requests.c
    begin, end = migration.stage_at, now
    old_begin, old_end = begin, now
    if migration.share == 1:  # Nobody is answered by the old one now: compare with what it did before.
        old_begin, old_end = migration.started_at, next(step.at for step in steps if step.stage == "full")
        begin = max(begin, now - WARM_WINDOW) if migration.stage == "warm" else begin
    old = (c.model == migration.alias) & (_tag(ARM) == "old") & _between(old_begin, old_end)
    if migration.stage == "shadow":
        new = (c.model == migration.new) & (c.lane == "shadow") & _between(begin, end)
    else:
        new = (c.model == migration.alias) & _tag(ARM).in_(("new", "fallback")) & _between(begin, end)
    async with database.session() as session:
        return await _arm(session, migration.id, old), await _arm(session, migration.id, new)


def _tag(name: str) -> ColumnElement[str]:
    return requests.c.tags[name].as_string()


def _between(begin: datetime, end: datetime) -> ColumnElement[bool]:
    return (requests.c.started_at >= begin) & (requests.c.started_at <= end)


async def _arm(session: AsyncSession, id: str, where: ColumnElement[bool]) -> Arm:
    c = requests.c
    columns = (c.status, c.error_code, c.refused, c.time_to_first_token, c.duration, c.cost, c.priced)
    query = (
        select(*columns, feedback.c.rating, _tag(ARM).label("arm"))
        .outerjoin(feedback, feedback.c.request_id == c.request_id)
        .where(where, _tag(MIGRATION) == id, c.lane != "batch", c.cache.not_in(HITS))
        .where(c.route.not_like("%count_tokens%"))
        .order_by(c.started_at.desc())
        .limit(MOST)
    )
    arm = Arm()
    async for rows in (await session.stream(query)).partitions(PART):
        for row in rows:
            _add(arm, row)
        await asyncio.sleep(0)
    return arm


def _add(arm: Arm, row: Any) -> None:
    if row.status == 499 or (row.status == 429 and not (row.error_code or "").startswith("upstream")):
        return  # The user left, or was over a limit of ours.
    arm.requests += 1
    is_empty = row.status < 400 and row.time_to_first_token is None
    if row.status >= 400 or row.arm == "fallback" or is_empty:
        arm.failures += 1
    if row.rating is not None:
        arm.ratings.append(row.rating)
    if row.status >= 400 or row.time_to_first_token is None:
        return
    arm.refusals += row.refused
    arm.first_token.append(row.time_to_first_token)
    arm.duration.append(row.duration)
    if row.priced:
        arm.cost.append(float(row.cost))
