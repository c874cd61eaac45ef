"""One of several processes on a database does a thing, and another takes over when it is gone.

A lease is a row with a holder and an end. Whoever finds it free, or over, writes itself in; the holder writes a later
end as long as it works. Taking it inside the transaction of the work itself (`Lease.take` with a session) makes sure
that who has lost it meanwhile commits nothing: the row stays locked until then.

Clocks of different machines must agree to within the lease's length, as they do by NTP; where they don't, two may hold
it for a while, so what they do must be harmless when done twice.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import or_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from wootz.store.columns import UtcDateTime
from wootz.store.database import Base, Database


class LeaseRow(Base):
    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    until: Mapped[datetime] = mapped_column(UtcDateTime)


class Lease:
    """``holder`` names this process, and no other that lives or has lived."""

    def __init__(
        self,
        database: Database,
        name: str,
        holder: str,
        length: timedelta,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.database, self.name, self.holder, self.length, self._clock = database, name, holder, length, clock

    async def take(self, session: AsyncSession | None = None) -> bool:
        """Whether it is ours, from now for its whole length."""
        if session is None:
            async with self.database.session() as own:
                return await self.take(own)
        now, row = self._clock(), {"name": self.name, "holder": self.holder}
        insert = sqlite.insert if self.database.dialect == "sqlite" else postgresql.insert
        # Before the clock's beginning: the row is there, and nobody's.
        nobody = {"name": self.name, "holder": "", "until": datetime.min.replace(year=1970, tzinfo=UTC)}
        await session.execute(insert(LeaseRow).values(**nobody).on_conflict_do_nothing())
        free = or_(LeaseRow.holder == self.holder, LeaseRow.until <= now)
        mine = update(LeaseRow).where(LeaseRow.name == self.name, free).values(**row, until=now + self.length)
        return (await session.execute(mine.returning(LeaseRow.name))).scalar_one_or_none() is not None

    async def give_up(self) -> None:
        """So that the next need not wait for its end."""
        ours = update(LeaseRow).where(LeaseRow.name == self.name, LeaseRow.holder == self.holder)
        async with self.database.session() as session:
            await session.execute(ours.values(until=self._clock()))
