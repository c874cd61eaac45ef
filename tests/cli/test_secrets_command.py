"""`wootz secrets`: what it takes, prints and exits with."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kept_bodies import write_with_body
from typer.testing import CliRunner

from wootz.cli.main import app
from wootz.core import Config, ConfigError, NotFoundError
from wootz.gateway.kept import Kept
from wootz.gateway.surfaces.response_store import ResponseStore
from wootz.store import Database
from wootz.store.secrets import open_local, wrapper_of
from wootz.store.secrets.envelope import make_master_key
from wootz.telemetry import Ledger, RequestRecord

FIRST, SECOND = "the-first-value-of-all", "the-second-value-of-all"


def test_a_life_by_hand(tmp_path: Path) -> None:
    said = ""

    def wootz(*arguments: str, value: str | None = None, code: int = 0) -> str:
        nonlocal said
        result = CliRunner().invoke(app, ["--home", str(tmp_path / "home"), "secrets", *arguments], input=value)
        assert result.exit_code == code, result.output
        said += result.output
        return result.output

    wootz("set", "openai", value=FIRST + "\n")
    wootz("rotate", "openai", value=SECOND)
    wootz("retire", "openai", "2", code=2)
    wootz("retire", "openai", "1", code=2)
    wootz("retire", "openai", "1", "--force")
    assert [word in wootz("show", "openai") for word in ("retired", "current")] == [True, True]
    wootz("list", "--stale", "--older-than-days", "0", code=1)
    assert '"action": "retired"' in wootz("audit", "openai", "--json")
    (tmp_path / "gateway.log").write_text(f"sent {SECOND} and {FIRST[:12]}")
    assert wootz("scan", str(tmp_path / "gateway.log"), code=1).count("openai@") == 2
    assert FIRST not in said
    assert SECOND not in said


def test_a_new_master_key_is_taken_for_all_that_the_old_one_locked(tmp_path: Path) -> None:
    home = tmp_path / "home"

    def wootz(*arguments: str, value: str | None = None, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["--home", str(home), *arguments], input=value)
        assert result.exit_code == code, result.output
        return result.output

    wootz("secrets", "set", "openai", value=FIRST)
    asyncio.run(_with_body(home))
    (home / "secrets.key").rename(home / "old.key")
    make_master_key(home / "secrets.key")
    assert "master key does not open it" in wootz("trace", "explain", "r1", "--body", code=2)
    with pytest.raises(ConfigError, match="master key does not open it"):
        asyncio.run(_kept(home))
    for _ in range(2):
        said = wootz("secrets", "rewrap", "--from", f"file:{home / 'old.key'}")
    assert "0 versions" in said
    (home / "old.key").unlink()
    assert SECOND in wootz("trace", "explain", "r1", "--body")
    assert SECOND in asyncio.run(_kept(home))
    assert open_local(Config(home=home)).current("openai").value == FIRST
    assert '"rewrapped"' in wootz("secrets", "audit", "openai", "--json")


def test_what_was_kept_with_a_lost_master_key_is_given_up(tmp_path: Path) -> None:
    asyncio.run(_with_body(tmp_path))
    (tmp_path / "secrets.key").unlink()
    make_master_key(tmp_path / "secrets.key")

    def wootz(*arguments: str, answer: str | None = None) -> str:
        return CliRunner().invoke(app, ["--home", str(tmp_path), *arguments], input=answer).output

    assert "can't be undone" in wootz("secrets", "give-up", answer="n\n")
    assert "1 responses" in wootz("secrets", "give-up", "-y")
    assert "0 responses" in wootz("secrets", "give-up", "-y")
    assert "kept.given_up" in wootz("audit", "list")
    with pytest.raises(NotFoundError):
        asyncio.run(_kept(tmp_path))


async def _kept(home: Path) -> str:
    config = Config(home=home)
    database = Database(config.database_url)
    try:
        response, _ = await ResponseStore(database, Kept(database, wrapper_of(config))).get(None, "resp-1")
        return response["output"]
    finally:
        await database.close()


async def _with_body(home: Path) -> None:
    config = Config(home=home)
    database = Database(config.database_url)
    await database.migrate()
    ledger = Ledger(database)
    record = RequestRecord(
        request_id="r1", started_at=datetime.now(UTC), route="/", key_id=None, model="m", provider="p", stream=False,
        status=200,
    )  # fmt: skip
    await write_with_body(ledger, record, SECOND, "[]", wrapper_of(config, create=True))
    response = {"id": "resp-1", "created_at": 1, "previous_response_id": None, "output": SECOND}
    await ResponseStore(database, Kept(database, wrapper_of(config))).save(None, response, [], None)
    await ledger.close()
    await database.close()
