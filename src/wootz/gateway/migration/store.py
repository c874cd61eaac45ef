"""Migrations in the database. Every step is one transaction: the new stage, the step's own row, the audit log's row.

Whoever wants to take a step says which one was the last that they saw. Where another replica (or a person) was quicker,
nothing is changed and they are told. So any number of replicas may act, none has to hold a lock or be elected, and one
that is killed leaves either the whole step behind or nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Column, Index, Integer, String, Table, Text, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from wootz.core import BadRequestError, NotFoundError
from wootz.core.wire import new_id
from wootz.gateway.migration.gates import Gate
from wootz.gateway.migration.plan import ENDED, ROLLED_BACK, SHARES, STAGES, Plan
from wootz.store import Base, Database, Typed, UtcDateTime
from wootz.store.audit import AuditLog

migrations = Table(
    "migrations",
    Base.metadata,
    Column("id", String, primary_key=True),
    Column("alias", String, nullable=False),
    Column("old", String, nullable=False),
    Column("new", String, nullable=False),
    Column("plan", Typed(Plan, Plan)),
    Column("stage", String, nullable=False),
    Column("step", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("stage_at", UtcDateTime, nullable=False),
    Column("open_alias", String, unique=True),
    Index(None, "alias", "started_at"),
)
"""``open_alias`` is the alias until it has ended, then NULL: so that a name has at most one open migration."""

steps = Table(
    "migration_steps",
    Base.metadata,
    Column("migration_id", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("stage", String, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", String, nullable=False),
    Column("why", Text, nullable=False),
    Column("gates", Typed(tuple[Gate, ...], tuple)),
)
"""``stage`` is what was entered; ``gates`` are those of the stage that was left."""


@dataclass(frozen=True, kw_only=True)
class Migration:
    id: str
    alias: str
    """The name that clients ask for."""
    old: str
    new: str
    plan: Plan
    stage: str
    step: int
    started_at: datetime
    stage_at: datetime
    """When the stage was entered."""

    @property
    def share(self) -> float:
        """Of the users that the new model answers."""
        return SHARES[self.stage]

    @property
    def is_open(self) -> bool:
        return self.stage not in ENDED


@dataclass(frozen=True, kw_only=True)
class Step:
    migration_id: str
    number: int
    stage: str
    at: datetime
    actor: str
    why: str
    gates: tuple[Gate, ...]


_COLUMNS = [column for column in migrations.c if column.name != "open_alias"]


class MigrationStore:
    def __init__(self, database: Database, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.database = database
        self.clock = clock
        self._audit = AuditLog(database, clock)

    async def start(self, *, alias: str, new: str, plan: Plan, actor: str) -> Migration:
        """In its first stage. Raises `BadRequestError` where the alias has an open one, or is answered by ``new``."""
        before = await self.newest(alias)
        if before is not None and before.is_open:
            raise _under_way(alias)
        old = alias if before is None else before.new if before.share == 1 else before.old
        if new == old:
            raise BadRequestError(f'"{alias}" is answered by "{new}" already')
        now = self.clock()
        if before is not None:  # The newest one decides, so no two may be as new.
            now = max(now, before.started_at + timedelta(microseconds=1))
        row: dict[str, Any] = {
            "id": new_id("migration")[:20], "alias": alias, "old": old, "new": new, "plan": plan, "stage": STAGES[0],
            "step": 0, "started_at": now, "stage_at": now,
        }  # fmt: skip
        try:
            async with self.database.session() as session:
                await session.execute(insert(migrations), [row | {"open_alias": alias}])
                await self._log(session, Migration(**row), actor, f"from {old} to {new}", ())
        except IntegrityError:
            raise _under_way(alias) from None
        return Migration(**row)

    async def move(
        self, seen: Migration, to: str, *, actor: str, why: str, gates: Sequence[Gate] = ()
    ) -> Migration | None:
        """Take a step from the state that was ``seen``. None, and nothing changed, where it has another one by now."""
        if not seen.is_open or (to != ROLLED_BACK and STAGES.index(to) != STAGES.index(seen.stage) + 1):
            raise BadRequestError(f'a migration in the stage "{seen.stage}" can\'t go to "{to}"')
        c = migrations.c
        values: dict[str, Any] = {"stage": to, "step": seen.step + 1, "stage_at": self.clock()}
        if to in ENDED:
            values["open_alias"] = None
        async with self.database.session() as session:
            unchanged = (c.id == seen.id) & (c.step == seen.step)
            moved = await session.execute(update(migrations).where(unchanged).values(values).returning(*_COLUMNS))
            row = moved.one_or_none()
            if row is None:
                return None
            migration = Migration(**row._mapping)
            await self._log(session, migration, actor, why, gates)
        return migration

    async def _log(self, session: Any, state: Migration, actor: str, why: str, gates: Sequence[Gate]) -> None:
        step = {
            "migration_id": state.id, "number": state.step, "stage": state.stage, "at": state.stage_at, "actor": actor,
            "why": why, "gates": tuple(gates),
        }  # fmt: skip
        await session.execute(insert(steps), [step])
        action = {ROLLED_BACK: "migration.rolled_back", "shadow": "migration.started"}.get(state.stage)
        detail = {
            "alias": state.alias, "old": state.old, "new": state.new, "stage": state.stage, "step": state.step,
            "why": why, "gates": {gate.name: gate.verdict for gate in gates},
        }  # fmt: skip
        await self._audit.append(
            actor=actor, action=action or "migration.advanced", subject=state.id, detail=detail, session=session
        )

    # --- reading --------------------------------------------------------------------------------------------------

    async def get(self, name: str) -> Migration:
        """By its id, or the newest of an alias. Raises `NotFoundError`."""
        c = migrations.c
        newest = select(*_COLUMNS).where(or_(c.id == name, c.alias == name)).order_by(c.started_at.desc(), c.id)
        async with self.database.session() as session:
            row = (await session.execute(newest.limit(1))).one_or_none()
        if row is None:
            raise NotFoundError(f'"{name[:100]}" has no migration', hint="see `wootz migrate list`")
        return Migration(**row._mapping)

    async def newest(self, alias: str) -> Migration | None:
        return next((one for one in await self.deciding() if one.alias == alias), None)

    async def deciding(self) -> list[Migration]:
        """The newest migration of each alias: those that say who answers."""
        c = migrations.c
        last = select(c.alias, func.max(c.started_at).label("started_at")).group_by(c.alias).subquery()
        newest = select(*_COLUMNS).join(last, (c.alias == last.c.alias) & (c.started_at == last.c.started_at))
        async with self.database.session() as session:
            return [Migration(**row._mapping) for row in await session.execute(newest.order_by(c.alias))]

    async def list(self, limit: int = 100) -> list[Migration]:
        """Newest first."""
        query = select(*_COLUMNS).order_by(migrations.c.started_at.desc(), migrations.c.id).limit(limit)
        async with self.database.session() as session:
            return [Migration(**row._mapping) for row in await session.execute(query)]

    async def steps(self, id: str) -> list[Step]:
        """Oldest first."""
        query = select(steps).where(steps.c.migration_id == id).order_by(steps.c.number)
        async with self.database.session() as session:
            return [Step(**row._mapping) for row in await session.execute(query)]


def _under_way(alias: str) -> BadRequestError:
    return BadRequestError(f'"{alias}" has a migration under way', hint="see `wootz migrate list`")
