"""Migrated databases for tests, each a copy of one that was migrated once in this process."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from wootz.store import Database


def fresh_sqlite(file: Path) -> str:
    """The URL of a new migrated database in ``file``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_template(), file)
    return f"sqlite+aiosqlite:///{file}"


@cache
def _template() -> Path:
    file = Path(tempfile.mkdtemp(prefix="wootz-template-")) / "wootz.db"
    migrate(f"sqlite+aiosqlite:///{file}")
    return file


def migrate(url: str) -> None:
    """Also where a loop is running: in a thread with a loop of its own."""

    async def run() -> None:
        database = Database(url)
        await database.migrate()
        await database.close()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, run()).result()
