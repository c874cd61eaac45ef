"""Run the migrations that ship inside the package: Alembic, without its command line, ini file or `env.py`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic.config import Config
from alembic.environment import EnvironmentContext
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


class NewerSchemaError(Exception):
    """The database holds a revision that this version does not know."""


def upgrade(connection: Connection) -> None:
    """Upgrade to the newest revision inside the caller's transaction: all of it is committed, or none."""
    scripts = _scripts()
    current = MigrationContext.configure(connection).get_current_heads()
    if current == tuple(scripts.get_heads()):
        return
    known = {script.revision for script in scripts.walk_revisions()}
    for revision in current:
        if revision not in known:
            raise NewerSchemaError(revision)
    # `_upgrade_revs` is how Alembic's documentation runs migrations from a program.
    environment = EnvironmentContext(Config(), scripts, fn=lambda at, _: scripts._upgrade_revs("head", at))
    with environment:
        environment.configure(connection=connection, transactional_ddl=True, render_as_batch=True)
        environment.run_migrations()


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory(Path(__file__).parent / "migrations")
