"""The Migrations page: where each one stands, how its gates do, and the two things a person may do. For admins only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse
from starlette.requests import Request
from starlette.responses import Response

from wootz.console.sessions import Visitor
from wootz.console.site import Site
from wootz.gateway.migration import Controller, Migration, Step
from wootz.gateway.migration.gates import Gate
from wootz.gateway.migration.plan import ROLLED_BACK, SHARES, STAGES, after
from wootz.gateway.migration.words import LABELS, figure, margin, worse

MOST = 20


@dataclass(frozen=True)
class Way:
    """One stage, as a stop on the way."""

    name: str
    share: str
    state: str
    """``done``, ``now``, ``ahead`` or, where it was left backwards, ``back``."""


@dataclass(frozen=True)
class Shown:
    migration: Migration
    way: list[Way]
    gates: list[Gate]
    steps: list[Step]
    next: str | None
    due: datetime | None

    @property
    def blocked(self) -> bool:
        return any(gate.verdict != "pass" for gate in self.gates)


def add_routes(router: APIRouter, site: Site) -> None:
    controller = Controller(site.gateway.migrations.store)

    @router.get("/migrations")
    async def show_migrations(request: Request, visitor: Visitor = Depends(site.allowed("operate"))) -> Response:
        found = await controller.store.list(MOST)
        shown = [await _shown(controller, one) for one in found]
        words = {"figure": figure, "worse": worse, "margin": margin, "labels": LABELS}
        return site.page("migrations.html", request, visitor, shown=shown, **words)

    @router.post("/migrations/{id}/advance")
    async def advance(request: Request, id: str, visitor: Visitor = Depends(site.acting("operate"))) -> Response:
        force = bool((await request.form()).get("force"))
        await controller.advance(id, actor=_actor(visitor), force=force)
        return RedirectResponse("/migrations", status_code=303)

    @router.post("/migrations/{id}/rollback")
    async def roll_back(id: str, visitor: Visitor = Depends(site.acting("operate"))) -> Response:
        await controller.roll_back(id, actor=_actor(visitor), why="asked for on the console")
        return RedirectResponse("/migrations", status_code=303)


def _actor(visitor: Visitor) -> str:
    return visitor.key.id if visitor.key else "console"


async def _shown(controller: Controller, one: Migration) -> Shown:
    steps = await controller.store.steps(one.id)
    gates = await controller.gates(one) if one.is_open else list(steps[-1].gates)
    due = one.stage_at + timedelta(seconds=one.plan.durations[one.stage]) if one.is_open else None
    return Shown(one, _way(one, steps), gates, steps[::-1], after(one.stage) if one.is_open else None, due)


def _way(one: Migration, steps: list[Step]) -> list[Way]:
    reached = [step.stage for step in steps if step.stage != ROLLED_BACK]
    last = STAGES.index(reached[-1])
    ways = []
    for number, stage in enumerate(STAGES):
        here = "back" if one.stage == ROLLED_BACK else "done" if stage == STAGES[-1] else "now"
        state = "done" if number < last else here if number == last else "ahead"
        ways.append(Way(stage, "copies" if stage == "shadow" else f"{SHARES[stage]:.0%}", state))
    return ways
