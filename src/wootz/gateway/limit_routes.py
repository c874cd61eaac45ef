"""``GET /admin/limits``: how much of every key's, team's, user's and tag's limits is used, for administrators."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field, PlainSerializer

from wootz.gateway.keys import KeyStore
from wootz.gateway.limits.limiter import Limiter
from wootz.gateway.limits.meters import LimitName, Use
from wootz.gateway.limits.rules import Subject, SubjectKind

Amount = Annotated[Decimal, PlainSerializer(lambda amount: f"{amount.normalize():f}", return_type=str)]


class LimitState(BaseModel):
    subject: SubjectKind
    name: str
    within: str | None = Field(default=None, description="Of a conversation: whose limit it is.")
    limit: LimitName
    used: Amount = Field(description="Of a budget in USD, else a number of requests or tokens.")
    held: Amount = Field(description="By requests that are under way; what they don't use is given back.")
    of: Amount
    full_again: datetime | None = Field(description="When the period ends; null for minutes, and where it never does.")


class LimitStates(BaseModel):
    data: list[LimitState]


async def states(keys: KeyStore, limits: Limiter) -> list[LimitState]:
    """Keys that are revoked are left out. Raises `CountersUnavailable`."""
    now = datetime.now(UTC)
    living = [
        key for key in await keys.list() if key.revoked_at is None and not (key.expires_at and key.expires_at <= now)
    ]
    subjects = [Subject("key", key.id, key.name, key.limits) for key in living]
    for kind in ("team", "user", "tag"):
        subjects += [account.subject for account in await keys.list_accounts(kind)]
    return [_state(use) for use in await limits.uses(subject for subject in subjects if subject.limits.any)]


def _state(use: Use) -> LimitState:
    meter = use.meter
    unit = Decimal(10) ** (-12 if meter.is_money else 0)
    return LimitState(
        subject=meter.subject.kind,
        name=meter.subject.name,
        within=str(meter.subject.within) if meter.subject.within else None,
        limit=meter.limit_name,
        used=use.used * unit,
        held=use.held * unit,
        of=meter.limit * unit,
        full_again=datetime.fromtimestamp(meter.end, UTC) if meter.end else None,
    )


def add_routes(router: APIRouter, keys: KeyStore, limits: Limiter) -> None:
    @router.get("/admin/limits")
    async def list_limits() -> LimitStates:
        """How much of each limit is used."""
        return LimitStates(data=await states(keys, limits))
