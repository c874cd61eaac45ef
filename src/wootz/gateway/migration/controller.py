"""Looks at the gates of every open migration, and takes the step that is due.

Each replica has one, and all may look at once: a step is taken by whoever is first (`MigrationStore.move`).
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime

from wootz.core import BadRequestError, WootzError
from wootz.gateway.migration.gates import Gate
from wootz.gateway.migration.numbers import gates_of
from wootz.gateway.migration.plan import ROLLED_BACK, after, decide
from wootz.gateway.migration.store import Migration, MigrationStore

log = logging.getLogger(__name__)

ACTOR = "migration controller"


class Controller:
    def __init__(self, store: MigrationStore) -> None:
        self.store = store

    async def tick(self) -> list[Migration]:
        """One look at all; the states of those that took a step."""
        moved = []
        for migration in await self.store.deciding():
            if migration.is_open:
                gates = await self.gates(migration)
                move = decide(migration.stage, self._seconds(migration), gates, migration.plan)
                if move and (now := await self.store.move(migration, move.to, actor=ACTOR, why=move.why, gates=gates)):
                    level = logging.WARNING if move.to == ROLLED_BACK else logging.INFO
                    log.log(level, "migration %s (%s): %s, %s", now.id, now.alias, now.stage, move.why)
                    moved.append(now)
        return moved

    async def gates(self, migration: Migration) -> list[Gate]:
        return await gates_of(self.store.database, migration, await self.store.steps(migration.id), self.store.clock())

    async def advance(self, name: str, *, actor: str, force: bool = False) -> Migration:
        """The next stage, before its time. Raises `BadRequestError` where a gate does not pass, unless by ``force``."""
        migration = await self.store.get(name)
        if not migration.is_open:
            raise BadRequestError(f"the migration is {migration.stage} already")
        gates = await self.gates(migration)
        if not force and (open := [gate for gate in gates if gate.verdict != "pass"]):
            words = "; ".join(f"{gate.name} {gate.verdict}s" for gate in open)
            raise BadRequestError(f"not every gate passes ({words})", hint="wait, or advance it by --force")
        why = "advanced by force" if force else "advanced before its time, every gate passed"
        return self._first(await self.store.move(migration, after(migration.stage), actor=actor, why=why, gates=gates))

    async def roll_back(self, name: str, *, actor: str, why: str) -> Migration:
        """The old model answers everybody again, within seconds. Without a look at numbers: it must work when nothing
        else does. Raises `BadRequestError` for one that has ended."""
        for _ in range(3):  # The controller may take a step at the same moment.
            migration = await self.store.get(name)
            if not migration.is_open:
                raise BadRequestError(
                    f"the migration is {migration.stage} already", hint="start one in the other direction"
                )
            if moved := await self.store.move(migration, ROLLED_BACK, actor=actor, why=why):
                return moved
        return self._first(None)

    async def run(self, seconds: float) -> None:
        """For ever."""
        while True:
            try:
                await self.tick()
            except WootzError as error:
                log.warning("migrations: no step taken: %s", error)
            except Exception:
                log.exception("migrations: no step taken")
            await asyncio.sleep(seconds)

    def _seconds(self, migration: Migration) -> float:
        now: datetime = self.store.clock()
        return (now - migration.stage_at).total_seconds()

    def _first(self, moved: Migration | None) -> Migration:
        if moved is None:
            raise BadRequestError("somebody else took a step just now", hint="look again: `wootz migrate status`")
        return moved
