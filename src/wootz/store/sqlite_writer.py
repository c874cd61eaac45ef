"""Rows into SQLite the shortest way, for what every request waits for.

A transaction of one row is some 0.1 ms of SQLite's own work, nearly all of it copying pages to the kernel; SQLAlchemy's
way to it and the trip to another thread and back took ten times as long. So a few rows are written where the caller
stands, in the event loop's thread, if nobody else is writing just then. Whatever could take longer (many rows, another
writer, the log's pages going back into the file with their syncs) is for `write`, in another thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from sqlalchemy import URL, Boolean, Double, Integer, LargeBinary, String, Table
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

Rows = Mapping[Table, Sequence[Mapping[str, Any]]]

BUSY_SECONDS = 30
FEW_ROWS = 32
LOG_ROWS = 500
"""After so many the log is written back into the file, with three syncs: 10 to 20 MB, and one in 500 that waits."""

PRAGMAS = ("synchronous = NORMAL", "foreign_keys = ON", "wal_autocheckpoint = 8000", "cache_size = -512")
"""Of every connection. A larger cache would hold pages that the kernel has too, once for each connection of the pool.
Whoever writes into a log that was just written back begins it anew, with a sync: that is to be the one who wrote it
back, so the others leave it to us for four times as long."""
AS_IT_IS = (String, Integer, Double, Boolean, LargeBinary)
"""Columns whose values the driver takes without SQLAlchemy's help."""

_DIALECT = SQLiteDialect_pysqlite()


class SqliteWriter:
    def __init__(self, url: URL) -> None:
        self._url = url
        self._lock = Lock()
        self.thread = ThreadPoolExecutor(1, "sqlite")
        """For `write`: one, because what SQLite keeps in memory would be there once for each."""
        self._connection: sqlite3.Connection | None = None
        self._in_log = 0

    def write_here(self, rows: Rows) -> bool:
        """Durable when it is true; false when it could have to wait, and has done nothing."""
        if self._in_log >= LOG_ROWS or _number(rows) > FEW_ROWS:
            return False
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._transaction(rows)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            return False
        finally:
            self._lock.release()
        return True

    def write(self, rows: Rows) -> None:
        """Waits for its turn."""
        with self._lock, self._patient() as connection:
            if self._in_log >= LOG_ROWS:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
                self._in_log = 0
            self._transaction(rows)

    def close(self) -> None:
        self.thread.shutdown(wait=False)
        self.thread = ThreadPoolExecutor(1, "sqlite")  # An engine may be used after it was disposed of, too.
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _transaction(self, rows: Rows) -> None:
        connection = self._connected()
        connection.execute("BEGIN IMMEDIATE")
        try:
            for table, of_it in rows.items():
                statement, values_of = _insert(table)
                connection.executemany(statement, map(values_of, of_it))
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise
        self._in_log += _number(rows)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            (file, *_), given = _DIALECT.create_connect_args(self._url)
            options: dict[str, Any] = {**given, "isolation_level": None, "check_same_thread": False, "timeout": 0}
            connection = sqlite3.connect(str(file), **options)
            for pragma in (*PRAGMAS, "wal_autocheckpoint = 0"):
                connection.execute(f"PRAGMA {pragma}")
            self._connection = connection
        return self._connection

    @contextmanager
    def _patient(self) -> Iterator[sqlite3.Connection]:
        connection = self._connected()
        connection.execute(f"PRAGMA busy_timeout = {1000 * BUSY_SECONDS}")
        try:
            yield connection
        finally:
            connection.execute("PRAGMA busy_timeout = 0")


def _number(rows: Rows) -> int:
    return sum(map(len, rows.values()))


@cache
def _insert(table: Table) -> tuple[str, Callable[[Mapping[str, Any]], list[Any]]]:
    """The statement, and what makes a row its values; a row that is there already stays as it is."""
    names = [column.name for column in table.columns]
    processes = [
        (place, process)
        for place, column in enumerate(table.columns)
        if not isinstance(column.type, AS_IT_IS)
        if (process := column.type.dialect_impl(_DIALECT).bind_processor(_DIALECT)) is not None
    ]

    def values_of(row: Mapping[str, Any]) -> list[Any]:
        values = [row.get(name) for name in names]
        for place, process in processes:
            values[place] = process(values[place])
        return values

    return str(insert(table).on_conflict_do_nothing().compile(dialect=_DIALECT)), values_of
