"""Run the migrations that ship inside the package (Alembic, without its command line or ini file)."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

_FOLDER = Path(__file__).parent / "migrations"


class NewerSchemaError(Exception):
    """The database holds a revision that this version does not know."""


def upgrade(connection: Connection) -> None:
    """Upgrade to the newest revision inside the caller's transaction: all of it is committed, or none."""
    config = Config(attributes={"connection": connection})
    # Option values are %-interpolated.
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    for revision in MigrationContext.configure(connection).get_current_heads():
        if revision not in known:
            raise NewerSchemaError(revision)
    command.upgrade(config, "head")
