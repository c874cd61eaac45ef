"""SQL for every room: one `Database`, SQLite in WAL mode unless a URL says PostgreSQL.

Each room declares its tables on `Base`; their DDL lives in ``store/migrations`` and `Database.migrate` runs it.

SQLite settings, and why: WAL lets readers go on while one writes; ``synchronous=NORMAL`` keeps every committed
row through a killed process (a power cut may cost the last moments, never consistency); transactions begin with
``BEGIN IMMEDIATE`` at their first write, so two writers queue up (for ``busy_timeout``) instead of failing on a
lock upgrade (https://www.sqlite.org/lang_transaction.html, https://www.sqlite.org/wal.html).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import NullPool

from wootz.core import ConfigError, UnavailableError
from wootz.store import migration
from wootz.store.sqlite_writer import BUSY_SECONDS, PRAGMAS, Rows, SqliteWriter

POSTGRESQL_CONNECT_SECONDS = 10
POSTGRESQL_SILENCE_SECONDS = 10
"""For a statement. A server that accepts it and says nothing (stopped, cut off by a firewall) must hold up nobody."""


class Base(DeclarativeBase):
    """Every room's tables. Constraints get the same name on every database, so that a migration can alter them."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )


class Database:
    """A connection pool. ``url`` is an async SQLAlchemy URL (see `Config.database_url`)."""

    def __init__(self, url: str) -> None:
        try:
            self.url = make_url(url)
            self.engine = create_async_engine(self.url, **_OPTIONS[self.dialect])
        except (SQLAlchemyError, ValueError, KeyError, ImportError):
            # Not shown: it may hold a password.
            raise ConfigError(
                "database.url is no URL of a supported database",
                hint="write sqlite+aiosqlite:///PATH or postgresql+asyncpg://USER@HOST/NAME",
            ) from None
        self._writer: SqliteWriter | None = None
        if self.dialect == "sqlite":
            event.listen(self.engine.sync_engine, "connect", _prepare_sqlite)
            self._writer = SqliteWriter(self.url)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self.url.get_backend_name()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """One transaction, and nothing but SQL in the block: committed when it ends, rolled back when it raises.

        A database that cannot be reached, is locked or full raises `UnavailableError`; the rest of SQLAlchemy's
        errors (`IntegrityError`, …) come as they are.
        """
        with self._explained():
            async with self._sessions() as session, session.begin():
                yield session

    async def insert(self, rows: Rows) -> None:
        """One transaction of rows, by their table; one that is there already stays as it is. Errors as of `session`.

        For what every request waits for: in SQLite see `SqliteWriter`.
        """
        if self.insert_here(rows):
            return
        with self._explained():
            if self._writer is not None:
                return await asyncio.wrap_future(self._writer.thread.submit(self._writer.write, rows))
            async with self.engine.begin() as connection:
                for table, of_it in rows.items():
                    await connection.execute(postgresql.insert(table).on_conflict_do_nothing(), of_it)

    def insert_here(self, rows: Rows) -> bool:
        """The same without waiting, where that can be; else nothing is done, and it is false."""
        with self._explained():
            return self._writer is not None and self._writer.write_here(rows)

    async def migrate(self) -> None:
        """Bring the tables to this version. Does nothing when they are; two processes may call it at once.

        Raises `ConfigError` when the database can't be opened, reached or written, or is from a newer Wootz.
        """
        try:
            if self.dialect == "sqlite" and self.url.database not in (None, "", ":memory:"):
                await asyncio.to_thread(_create_sqlite, Path(str(self.url.database)))
            async with self._patient() as connection:
                await connection.exec_driver_sql(_LOCK[self.dialect])
                await connection.run_sync(migration.upgrade)
                await connection.commit()
        except migration.NewerSchemaError as newer:
            raise ConfigError(
                f"database {self._shown} is from a newer Wootz (its schema is {newer})", hint="upgrade Wootz"
            ) from None
        except (DBAPIError, sqlite3.Error, OSError) as error:
            raise ConfigError(self._explain(error)) from error

    async def vacuum(self) -> None:
        """What was deleted is still in free pages, and in SQLite's log; a reader may delay that log's end."""
        async with self.engine.connect() as connection:
            connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.exec_driver_sql("VACUUM")
            if self.dialect == "sqlite":
                await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    @asynccontextmanager
    async def _patient(self) -> AsyncIterator[AsyncConnection]:
        """For statements that may take their time: a migration of large tables."""
        if self.dialect == "sqlite":
            async with self.engine.connect() as connection:
                yield connection
            return
        engine = create_async_engine(self.url, poolclass=NullPool, connect_args={"timeout": POSTGRESQL_CONNECT_SECONDS})
        async with engine.connect() as connection:
            yield connection

    async def close(self) -> None:
        await self.engine.dispose()
        if self._writer is not None:
            self._writer.close()

    @property
    def _shown(self) -> str:
        return str(self.url.database) if self.dialect == "sqlite" else _without_password(self.url)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, sqlite3.OperationalError, OSError) as error:
            if not _is_out_of_order(error):
                raise
            raise UnavailableError(self._explain(error), code="database_unavailable") from error

    def _explain(self, error: Exception) -> str:
        reason = str(error.orig) if isinstance(error, DBAPIError) else str(error)
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.strerror} ({error.filename})" if error.filename else error.strerror
        return f"database {self._shown}: {' '.join(reason.split()) or type(error).__name__}"


# `isolation_level` is sqlite3's: how it begins a transaction before the first write.
_OPTIONS: dict[str, dict[str, Any]] = {
    "sqlite": {"connect_args": {"timeout": BUSY_SECONDS, "isolation_level": "IMMEDIATE"}},
    "postgresql": {
        "pool_pre_ping": True,
        "connect_args": {"timeout": POSTGRESQL_CONNECT_SECONDS, "command_timeout": POSTGRESQL_SILENCE_SECONDS},
    },
}

_LOCK = {
    "sqlite": "BEGIN IMMEDIATE",
    # Any constant will do, as long as every version of Wootz uses the same one. Freed at the end of the transaction.
    "postgresql": "SELECT pg_advisory_xact_lock(7466902)",
}


def _create_sqlite(file: Path) -> None:
    """Make the file, and find out here what is wrong with it: a failed connection of the pool is noisy about it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")  # Is kept in the file.


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _is_out_of_order(error: Exception) -> bool:
    """Whether the database, and not the statement, is at fault: gone, locked, full, restarting."""
    if not isinstance(error, DBAPIError) or isinstance(error, OperationalError) or error.connection_invalidated:
        return True
    # https://www.postgresql.org/docs/current/errcodes-appendix.html: connection exception, insufficient resources,
    # operator intervention, and (at connecting) not in prerequisite state.
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    return sqlstate.startswith(("08", "53", "57P", "55000"))


def _without_password(url: URL) -> str:
    return url.set(drivername=url.get_backend_name(), password=None).render_as_string()
