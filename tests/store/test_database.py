"""The database: its schema is the tables', it survives company and misfortune, and money stays exact."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, insert, select, text
from sqlalchemy.exc import StatementError

from wootz.core import ConfigError, UnavailableError
from wootz.store import Base, Database, ExactUSD, UtcDateTime, migration

NEWEST = max(file.name[:4] for file in (Path(migration.__file__).parent / "migrations" / "versions").glob("0*.py"))
ROOMS_WITH_TABLES = (
    "wootz.telemetry.ledger",
    "wootz.telemetry.alerts.incidents",
    "wootz.gateway.tasks",
    "wootz.gateway.identity.oidc",
    "wootz.gateway.identity.erasure",
    "wootz.store.audit",
    "wootz.store.lease",
)

MIGRATE = """
import asyncio, sys
from wootz.store import Database
async def main():
    database = Database(sys.argv[1])
    await database.migrate()
    await database.close()
asyncio.run(main())
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def is_one_line(error: BaseException) -> bool:
    return len(str(error).splitlines()) == 1


async def test_migrations_make_exactly_the_tables_that_rooms_declare(database: Database) -> None:
    for room in ROOMS_WITH_TABLES:
        importlib.import_module(room)
    async with database.engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), Base.metadata)
        )
    assert differences == []


async def test_migrating_again_changes_nothing(database: Database) -> None:
    async with database.session() as session:
        await session.execute(text(f"insert into alembic_version values ('{NEWEST}') on conflict do nothing"))
    await database.migrate()
    async with database.session() as session:
        assert (await session.execute(text("select count(*) from alembic_version"))).scalar() == 1


@pytest.mark.slow
async def test_many_processes_may_migrate_at_once(database_url: str) -> None:
    processes = [python(MIGRATE, database_url) for _ in range(4)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    database = Database(database_url)
    async with database.session() as session:
        assert (await session.execute(text("select version_num from alembic_version"))).scalars().all() == [NEWEST]
    await database.close()


async def test_a_failed_migration_leaves_nothing_behind(database_url: str) -> None:
    database = Database(database_url)
    async with database.engine.begin() as connection:
        await connection.execute(text("create table requests (mine int)"))  # 0001 will trip over it, after two tables
    with pytest.raises(ConfigError, match="already exists"):
        await database.migrate()
    async with database.engine.connect() as connection:
        for table in ("keys", "sessions"):
            query = (
                "select count(*) from information_schema.tables where table_name = :name and table_schema = 'public'"
            )
            if database.dialect == "sqlite":
                query = "select count(*) from sqlite_master where name = :name"
            assert (await connection.execute(text(query), {"name": table})).scalar() == 0
    await database.close()


async def test_a_database_from_a_newer_version_is_refused(database: Database) -> None:
    async with database.session() as session:
        await session.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(ConfigError, match="from a newer Wootz") as caught:
        await database.migrate()
    assert is_one_line(caught.value)


async def test_a_block_that_raises_is_rolled_back(database: Database) -> None:
    async with database.session() as session:
        await session.execute(text("create table t (x int)"))
    with pytest.raises(RuntimeError):  # noqa: PT012
        async with database.session() as session:
            await session.execute(text("insert into t values (1)"))
            raise RuntimeError
    async with database.session() as session:
        assert (await session.execute(text("select count(*) from t"))).scalar() == 0
        await session.execute(text("insert into t values (2)"))
    async with database.session() as session:
        assert (await session.execute(text("select x from t"))).scalars().all() == [2]


COUNT_UP = """
import asyncio, sys
from sqlalchemy import text
from wootz.store import Database
async def main():
    database = Database(sys.argv[1])
    async def once():
        async with database.session() as session:
            await session.execute(text("select x from counter"))
            await session.execute(text("update counter set x = x + 1"))
    for _ in range(20):
        await asyncio.gather(*(once() for _ in range(5)))
    await database.close()
asyncio.run(main())
"""


async def test_writers_wait_for_each_other(database: Database) -> None:
    async with database.session() as session:
        await session.execute(text("create table counter (x int)"))
        await session.execute(text("insert into counter values (0)"))
    processes = [python(COUNT_UP, database.url.render_as_string(hide_password=False)) for _ in range(3)]
    for process in processes:
        _, errors = await asyncio.to_thread(process.communicate)
        assert process.returncode == 0, errors
    async with database.session() as session:
        assert (await session.execute(text("select x from counter"))).scalar() == 300


async def test_sqlite_is_set_up_for_a_server(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'deep' / 'er' / 'wootz.db'}")
    await database.migrate()
    async with database.session() as session:
        settings = {}
        for pragma in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout"):
            settings[pragma] = (await session.execute(text(f"pragma {pragma}"))).scalar()
    assert settings == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 30_000}
    await database.close()


# --- misfortune -----------------------------------------------------------------------------------------------


async def refusal(url: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:  # noqa: PT012
        database = Database(url)
        try:
            await database.migrate()
        finally:
            await database.close()
    assert is_one_line(caught.value)
    return caught.value


async def test_an_unreachable_postgres_is_one_line_without_the_password() -> None:
    error = await refusal("postgresql+asyncpg://me:hunter2@127.0.0.1:1/wootz")
    assert "127.0.0.1:1/wootz" in str(error)
    assert "hunter2" not in str(error)


async def test_a_missing_postgres_database_is_one_line(postgres_url: str) -> None:
    assert "does not exist" in str(await refusal(postgres_url.replace("/test_", "/nope_")))


async def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    error = await refusal(f"sqlite+aiosqlite:///{tmp_path / 'file' / 'wootz.db'}")
    assert f"File exists ({tmp_path / 'file'})" in str(error)


async def test_a_folder_in_the_place_of_the_file_is_one_line(tmp_path: Path) -> None:
    assert "unable to open" in str(await refusal(f"sqlite+aiosqlite:///{tmp_path}"))


async def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "wootz.db").write_bytes(b"not a database, whatever its name says" * 100)
    assert "not a database" in str(await refusal(f"sqlite+aiosqlite:///{tmp_path / 'wootz.db'}"))


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql+aiomysql://host/db", "sqlite+nodriver:///x", "postgresql://h:port/x"]
)
async def test_a_url_that_is_none_is_one_line(url: str) -> None:
    await refusal(url)


FILL = """
import asyncio, resource, sys
from wootz.core import WootzError
from wootz.store import Database
async def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    try:
        await Database(sys.argv[1]).migrate()
    except WootzError as error:
        sys.exit(f"{type(error).__name__}: {error}")
asyncio.run(main())
"""


def test_no_room_for_the_database_is_one_line(tmp_path: Path) -> None:
    process = python(FILL, f"sqlite+aiosqlite:///{tmp_path / 'wootz.db'}")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.startswith("ConfigError: database ")
    assert len(errors.splitlines()) == 1


async def test_a_full_database_refuses_the_session_and_keeps_what_it_had(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'wootz.db'}")
    await database.migrate()
    async with database.session() as session:
        await session.execute(text("create table t (x)"))
        await session.execute(text("insert into t values ('kept')"))
    with pytest.raises(UnavailableError, match="full") as caught:  # noqa: PT012
        async with database.session() as session:
            pages = (await session.execute(text("pragma page_count"))).scalar()
            await session.execute(text(f"pragma max_page_count = {pages}"))
            await session.execute(text("insert into t values (zeroblob(1000000))"))
    assert is_one_line(caught.value)
    async with database.session() as session:
        assert (await session.execute(text("select x from t"))).scalars().all() == ["kept"]
    await database.close()


# --- column types ---------------------------------------------------------------------------------------------

values = Table(
    "v", MetaData(), Column("id", Integer, primary_key=True), Column("usd", ExactUSD), Column("at", UtcDateTime)
)

BIGGEST = Decimal(2**63 - 1).scaleb(-12)


async def stored(database: Database, **value: object) -> dict[str, object]:
    async with database.session() as session:
        await session.run_sync(lambda sync: values.create(sync.connection(), checkfirst=True))
        await session.execute(insert(values).values(**value))
        return dict((await session.execute(select(values).order_by(values.c.id.desc()).limit(1))).one()._mapping)


@pytest.mark.parametrize("amount", [Decimal(0), Decimal("-1.5"), Decimal("1E+3"), Decimal("0.000000000001"), BIGGEST])
async def test_money_comes_back_exactly(database: Database, amount: Decimal) -> None:
    assert (await stored(database, usd=amount))["usd"] == amount


@given(st.decimals(min_value=-BIGGEST, max_value=BIGGEST, places=12))
def test_money_is_an_integer_of_picodollars(amount: Decimal) -> None:
    column = ExactUSD()
    dialect = Database("sqlite+aiosqlite://").engine.dialect
    bound = column.process_bind_param(amount, dialect)
    assert isinstance(bound, int)
    assert column.process_result_value(bound, dialect) == amount


async def test_money_finer_than_the_column_is_refused(database: Database) -> None:
    with pytest.raises(StatementError, match="more than 12 decimals"):
        await stored(database, usd=Decimal("0.0000000000001"))


async def test_an_instant_comes_back_in_utc(database: Database) -> None:
    at = datetime(2025, 3, 30, 1, 59, 59, 999_999, tzinfo=timezone(timedelta(hours=-7, minutes=30)))
    back = (await stored(database, at=at))["at"]
    assert isinstance(back, datetime)
    assert back == at
    assert back.tzinfo is UTC


async def test_a_datetime_without_zone_is_refused(database: Database) -> None:
    with pytest.raises(StatementError, match="names no instant"):
        await stored(database, at=datetime(2025, 3, 30))
