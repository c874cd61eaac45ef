"""How much one conversation may use up: so many requests (the steps of an agent), so much money.

A client names its conversation: in the header ``x-wootz-conversation``, as ``metadata.conversation_id``, or by going on
from a response (``previous_response_id``), whose first one then names it. It is counted as the tag ``conversation``, so
`wootz cost report --by tag:conversation` tells what each cost. Who names none has none: this stops programs that run
away, not people who want around it; that is what all other limits are for.

A conversation is counted by the day of the limits it comes from. One that goes on overnight begins anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select

from wootz.core import BadRequestError
from wootz.core.tool_wire import ModelRequest
from wootz.gateway.limits.meters import Meter, to_picodollars
from wootz.gateway.limits.periods import period_at
from wootz.gateway.limits.rules import Subject
from wootz.store import Database
from wootz.telemetry.ledger import requests

HEADER = "x-wootz-conversation"
TAG = "conversation"
MAX_CHARS = 128
SHOWN = 100
"""Conversations of one key, team, user or tag that administrators are shown: the longest of today."""


def named(text: Any, where: str) -> str:
    """Raises `BadRequestError`: it becomes a part of counters' names and of reports."""
    if not isinstance(text, str) or not 0 < len(text) <= MAX_CHARS or not text.isprintable():
        raise BadRequestError(f'"{where}" is 1 to {MAX_CHARS} printable characters', param=where)
    return text


def conversation_of(request: ModelRequest) -> str:
    """As its surface found it, or as its metadata says; empty when it is of none."""
    if request.journey.conversation:
        return request.journey.conversation
    metadata = (request.model_extra or {}).get("metadata")
    said = metadata.get("conversation_id") if isinstance(metadata, dict) else None
    return "" if said is None else named(said, "metadata.conversation_id")


def conversation_meters(whose: Subject, id: str, now: float, picodollars: int) -> list[Meter]:
    limits = whose.limits
    subject = Subject("conversation", id, id, limits, within=whose)
    start, end = period_at(now, "daily", limits.time_zone, limits.reset_hour)
    prefix = f"conversation:{whose.kind}:{whose.id}:{limits.time_zone}:{limits.reset_hour}"
    meters: list[Meter] = []
    if (steps := limits.conversation_steps) is not None:
        meters.append(Meter(f"{prefix}:steps:{id}", "period", subject, "conversation_steps", steps, 1, start, end))
    if (usd := limits.conversation_usd) is not None:
        most = to_picodollars(usd)
        name = f"{prefix}:usd:{id}"
        meters.append(Meter(name, "period", subject, "conversation_budget", most, picodollars, start, end))
    return meters


async def longest_today(database: Database, keys: Sequence[str], whose: Subject, now: float) -> list[str]:
    """The conversations with most requests today, of these keys."""
    start, _ = period_at(now, "daily", whose.limits.time_zone, whose.limits.reset_hour)
    conversation = requests.c.tags[TAG].as_string()
    query = (
        select(conversation)
        .where(requests.c.key_id.in_(keys), requests.c.started_at >= datetime.fromtimestamp(start, UTC))
        .where(conversation.is_not(None))
        .group_by(conversation)
        .order_by(func.count().desc())
        .limit(SHOWN)
    )
    async with database.session() as session:
        return list((await session.scalars(query)).all())
