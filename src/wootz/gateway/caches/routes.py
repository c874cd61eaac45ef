"""The caches by HTTP: what they hold and did, forget it, and an answer by meaning that was the wrong one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from wootz.core import NotFoundError
from wootz.core.acting import actor
from wootz.gateway.accounts import NO_ACCOUNT
from wootz.gateway.caches.caches import Caches
from wootz.gateway.gateway import Gateway


class CacheState(BaseModel):
    exact_enabled: bool
    semantic_models: list[str]
    entries: int
    bytes: int
    semantic_entries: int
    requests: dict[str, dict[str, int]] = Field(description="By model: how many were answered how, in this process.")
    guarded: dict[str, int] = Field(description="Near questions that were not taken for the same, by the difference.")
    false_hits: dict[str, int] = Field(description="Reported, by model.")


async def state_of(caches: Caches) -> CacheState:
    size, semantic = await caches.store.size(), caches.semantic
    requests: dict[str, dict[str, int]] = {}
    for (model, status), number in sorted(caches.counts.items()):
        requests.setdefault(model, {})[status] = number
    return CacheState(
        exact_enabled=caches.exact.enabled,
        semantic_models=caches.meaning.models,
        entries=size.entries,
        bytes=size.bytes,
        semantic_entries=semantic.num_entries if semantic else 0,
        requests=requests,
        guarded=dict(semantic.refused) if semantic else {},
        false_hits=dict(semantic.false_hits) if semantic else {},
    )


class Purged(BaseModel):
    purged: int


class FalseHit(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    request_id: str = Field(min_length=1, max_length=200, description="x-request-id of the answer that was wrong.")


async def purge_and_tell(
    gateway: Gateway, *, model: str | None = None, tenant: str | None = None, user: str | None = None
) -> int:
    """Purge, for an administrator, once it is written down: without a user's name, which the audit log can't forget."""
    account = None
    if user is not None and gateway.keys is not None:
        accounts = await gateway.keys.list_accounts("user")
        account = next((one for one in accounts if user in (one.id, one.name)), None)
    whose = account.id if account else user and NO_ACCOUNT
    detail = {name: value for name, value in (("tenant", tenant), ("user", whose)) if value is not None}
    await gateway.audit.append(actor=actor(), action="cache.purged", subject=model or "all models", detail=detail)
    users = {user} | ({account.id, account.name} if account else set())
    return sum([await gateway.caches.purge(model=model, tenant=tenant, user=one) for one in users])


def add_admin_routes(router: APIRouter, gateway: Gateway) -> None:
    @router.get("/admin/caches")
    async def state() -> CacheState:
        return await state_of(gateway.caches)

    @router.delete("/admin/caches")
    async def purge(model: str | None = None, tenant: str | None = None, user: str | None = None) -> Purged:
        """Forget answers: of a model, of a tenant (a team's or key's id), of a user (by name or id), of all that is
        given, or all; running ones too."""
        return Purged(purged=await purge_and_tell(gateway, model=model, tenant=tenant, user=user))


def add_routes(router: APIRouter, gateway: Gateway) -> None:
    @router.post("/v1/caches/false_hits")
    async def report_false_hit(request: Request, body: FalseHit) -> Purged:
        """The answer to this request was another question's. It is forgotten, and counted."""
        if gateway.caches.semantic is None:
            raise NotFoundError("no model is answered by meaning", code="cache_off")
        key = request.state.key
        tenant = None if key is None or key.is_admin else key.tenant
        gateway.caches.semantic.report_false_hit(body.request_id, tenant)
        return Purged(purged=1)
