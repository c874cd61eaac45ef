"""What a resolved conversation costs with the newer of two models behind one name, against the older.

The sums are those of cost reports (`telemetry/conversations.py`). The newer model may cost more if it is graded better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Double, cast, func, select, type_coerce
from sqlalchemy.ext.asyncio import AsyncSession

from wootz.telemetry.alerts.rules import Rule
from wootz.telemetry.conversations import conversations
from wootz.telemetry.ledger import requests
from wootz.telemetry.signals import signals

FIRST_SEEN = timedelta(days=60)
"""A model that was first asked before that is old in any case."""
BETTER = 0.02
"""Of a grade from 0 to 1: with so much more quality, a higher price is not this alert's business."""


@dataclass(frozen=True)
class PerResolved:
    """Sums over conversations: of their cost, of 1 where they were resolved, and of the products of both."""

    conversations: int
    cost: float
    resolved: float
    cost_squares: float
    products: float

    @property
    def value(self) -> float:
        return self.cost / self.resolved if self.resolved else math.inf

    @property
    def variance(self) -> float:
        """Of the ratio, by its linearisation (Cochran, Sampling Techniques, 6.4)."""
        n, ratio = self.conversations, self.value
        if not self.resolved:
            return math.inf
        residuals = self.cost_squares - 2 * ratio * self.products + ratio * ratio * self.resolved
        return max(0.0, residuals) / (self.resolved * self.resolved) * (n / max(1, n - 1))


@dataclass(frozen=True)
class Pair:
    """Behind one name: what the newer model needs, and the older."""

    newer: str
    older: str
    now: PerResolved
    before: PerResolved
    quality: tuple[float | None, float | None]

    @property
    def ratio(self) -> float:
        return self.now.value / self.before.value if self.before.value else math.inf

    @property
    def standard_errors(self) -> float:
        error = math.sqrt(self.now.variance + self.before.variance)
        return abs(self.now.value - self.before.value) / error if error else math.inf

    @property
    def is_better(self) -> bool:
        newer, older = self.quality
        return newer is not None and older is not None and newer > older + BETTER


async def pairs(session: AsyncSession, rule: Rule, until: datetime) -> dict[str, Pair]:
    """By the name that users ask for; where fewer than ``rule.least`` conversations went to either, it is left out."""
    since = until - rule.window
    enough: dict[str, dict[str, PerResolved]] = {}
    for (model, deployment), of in (await _spent(session, since, until)).items():
        if of.resolved and of.conversations >= rule.least:
            enough.setdefault(model, {})[deployment] = of
    enough = {model: found for model, found in enough.items() if len(found) > 1}
    if not enough:  # As nearly always, and what follows looks far back.
        return {}
    seen, quality = await _first_seen(session, enough, until), await _quality(session, since, until)
    compared: dict[str, Pair] = {}
    for model, found in enough.items():
        newer = max(found, key=lambda one: seen.get((model, one), until - FIRST_SEEN))
        older = max((one for one in found if one != newer), key=lambda one: found[one].conversations)
        compared[model] = Pair(newer, older, found[newer], found[older], (quality.get(newer), quality.get(older)))
    return compared


async def _spent(session: AsyncSession, since: datetime, until: datetime) -> dict[tuple[str, str], PerResolved]:
    c = requests.c
    groups = {"group_0": c.model, "group_1": c.deployment}
    one = conversations(requests, groups, since, until, c.deployment.is_not(None)).c
    usd = cast(type_coerce(one.cost, BigInteger), Double) / 1e12
    sums: dict[str, Any] = {
        "conversations": func.count(),
        "cost": func.sum(usd),
        "resolved": func.sum(one.resolved),
        "cost_squares": func.sum(usd * usd),
        "products": func.sum(usd * one.resolved),
    }
    named = (one.group_0.label("model"), one.group_1.label("deployment"))
    query = select(*named, *(of.label(name) for name, of in sums.items())).group_by(one.group_0, one.group_1)
    return {
        (row.model, row.deployment): PerResolved(
            int(row.conversations), *(float(row._mapping[name]) for name in list(sums)[1:])
        )
        for row in await session.execute(query)
    }


async def _first_seen(session: AsyncSession, models: Iterable[str], until: datetime) -> dict[tuple[str, str], datetime]:
    c = requests.c
    query = select(c.model, c.deployment, func.min(c.started_at).label("first")).where(
        c.model.in_(models), c.started_at >= until - FIRST_SEEN, c.started_at < until, c.deployment.is_not(None)
    )
    return {
        (row.model, row.deployment): row.first for row in await session.execute(query.group_by(c.model, c.deployment))
    }


async def _quality(session: AsyncSession, since: datetime, until: datetime) -> dict[str, float]:
    s = signals.c
    query = select(s.model, func.avg(s.value).label("grade")).where(s.kind == "quality", s.at >= since, s.at < until)
    return {row.model: float(row.grade) for row in await session.execute(query.group_by(s.model)) if row.model}
