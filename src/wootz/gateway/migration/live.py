"""Migrations as one process sees them: who is answered by which model now, and what is copied to the shadow.

The database decides and is read again every two seconds, so a step that anybody takes holds in every replica soon
after, without a restart. Where it is out of reach, what was read last goes on to hold.

A request that is meant for the new model has the old one as its fallback until its first word; so a migration adds no
failures to what users see. One that is meant for the old model goes to it exactly as before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, TypeVar

from wootz.core import LanguageModel, WootzError
from wootz.core.sections import RouteConfig
from wootz.core.tool_wire import ModelRequest
from wootz.core.wire import ChatChunk, Completion, SamplingFields
from wootz.gateway.identity.residency import region_of
from wootz.gateway.migration.controller import Controller
from wootz.gateway.migration.members import Member, NewModel, OldModel
from wootz.gateway.migration.plan import DECOMMISSIONED
from wootz.gateway.migration.shadow import Shadows
from wootz.gateway.migration.store import Migration, MigrationStore
from wootz.gateway.migration.tags import ARM, MIGRATION
from wootz.gateway.routing.deployment import Deployment
from wootz.gateway.routing.policies.ab import position
from wootz.gateway.routing.route import Route, Target
from wootz.providers.cascade import Cascade
from wootz.telemetry.works import at_work

if TYPE_CHECKING:
    from wootz.gateway.gateway import Gateway

log = logging.getLogger(__name__)

RELOAD_SECONDS = 2.0

Chunk = TypeVar("Chunk", ChatChunk, Completion)
Asked = TypeVar("Asked", bound=SamplingFields)


@dataclass(frozen=True)
class Live:
    """``old`` is None for the model of the alias itself; ``route`` asks the new model first, and is None where this
    process does not have it."""

    migration: Migration
    old: LanguageModel | None
    route: Route | None


class Migrations:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.store = MigrationStore(gateway.database)
        self.shadows = Shadows(gateway, gateway.config.migrations.shadow_concurrency)
        self._live: Mapping[str, Live] = {}
        self._random = Random()

    # --- one request ----------------------------------------------------------------------------------------------

    def choose(self, request: ModelRequest, model: LanguageModel) -> LanguageModel:
        """What answers it; ``model`` where no migration has a say. Vectors of two models do not mix, so embeddings stay
        with the old one: an index is migrated by making it anew."""
        live = self._live.get(request.model)
        if live is None or not isinstance(request, SamplingFields) or request.journey.lane == "shadow":
            return model
        migration, journey = live.migration, request.journey
        if migration.new in journey.bounds.barred:
            return live.old or model
        is_mine = migration.share == 1 or (migration.share > 0 and self._place(migration, request) < migration.share)
        to_new = live.route if is_mine else None
        if migration.is_open:
            mine = {MIGRATION: migration.id, ARM: "old" if to_new is None else "new"}
            journey.tags = mine | {name: value for name, value in journey.tags.items() if name not in mine}
        if to_new is not None:
            journey.variant = migration.new
            return to_new
        journey.variant = "" if live.old is None else live.old.name
        return live.old or model

    def _place(self, migration: Migration, request: SamplingFields) -> float:
        """In [0, 1), the same for a user from every replica; by lot for who is nobody."""
        identity = f"{request.journey.caller}\0{request.user or ''}".strip("\0")
        return position(migration.id, identity) if identity else self._random.random()

    def watching(
        self, request: Asked, request_id: str, ask: Callable[[Asked], AsyncGenerator[Chunk, None]]
    ) -> Callable[[Asked], AsyncGenerator[Chunk, None]]:
        """``ask``, and a copy of the request for the new model once the user's answer is under way."""
        live = self._live.get(request.model) if MIGRATION in request.journey.tags else None
        if live is None or not self.shadows.wants(live.migration, request, request_id):
            return ask

        async def watched(asked: Asked) -> AsyncGenerator[Chunk, None]:
            chunks, to_copy = ask(asked), True
            try:
                async for chunk in chunks:
                    yield chunk
                    if to_copy:
                        self.shadows.send(live.migration, asked, request_id)
                        to_copy = False
            finally:
                await chunks.aclose()

        return watched

    # --- keeping up with the database -----------------------------------------------------------------------------

    async def reload(self) -> None:
        live = {}
        for migration in await self.store.deciding():
            known = self._live.get(migration.alias)
            if known is not None and known.migration == migration and known.route is not None:
                live[migration.alias] = known
            elif (now := self._open(migration, known)) is not None:
                live[migration.alias] = now
        self._live = live

    def _open(self, migration: Migration, known: Live | None) -> Live | None:
        """None where it has no say here."""
        models = self.gateway.models
        old = models.get(migration.old)
        if not migration.is_open and migration.share == 0 and migration.old == migration.alias:
            return None
        if (new := models.get(migration.new)) is None:
            if known is None:
                log.warning('migration %s: this process has no model "%s"', migration.id, migration.new)
            return Live(migration, None if migration.old == migration.alias else old, None)
        if (
            known is not None
            and known.route is not None
            and known.migration.id == migration.id
            and migration.stage != DECOMMISSIONED
        ):
            return Live(migration, known.old, known.route)  # With what its breaker knows.
        fallback = [] if old is None or migration.stage == DECOMMISSIONED else [OldModel(old)]
        config = RouteConfig.model_validate(
            {"targets": [migration.new], "fallbacks": [one.name for one in fallback], "retries": 0}
        )
        target = Target(deployment=self._deployment(NewModel(new)))
        route = Route(migration.alias, config, [target], [self._deployment(one) for one in fallback])
        return Live(migration, None if migration.old == migration.alias else old, route)

    def _deployment(self, member: Member) -> Deployment:
        composed = isinstance(member.model, Route | Cascade)
        region = region_of(self.gateway.config, member.name)
        return Deployment(member, time.monotonic, composed=composed, region=region)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Inside of the block it keeps up, and steps that are due are taken."""
        controller, seconds = Controller(self.store), self.gateway.config.migrations.check_seconds
        works = {"migrations": self.follow, "steps of migrations": lambda: controller.run(seconds)}
        try:
            async with at_work(self.gateway.telemetry.metrics, works):
                yield
        finally:
            await self.shadows.close()

    async def follow(self) -> None:
        """Read again and again, for ever."""
        while True:
            try:
                await self.reload()
            except WootzError as error:
                log.warning("migrations: not read again: %s", error)
            except Exception:
                log.exception("migrations: not read again")
            await asyncio.sleep(RELOAD_SECONDS)
