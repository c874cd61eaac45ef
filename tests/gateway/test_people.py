"""People: what their keys may do follows from their groups, also when the config changes while nobody looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from wootz.app.http import create_app
from wootz.core import BadRequestError, Config
from wootz.gateway import KeyStore
from wootz.gateway.identity.people import People
from wootz.store import Database
from wootz.store.audit import AuditLog


def config_of(database: Database, folder: Path, **groups: list[str]) -> Config:
    url = database.url.render_as_string(hide_password=False)
    models = {"m": {"base_url": "http://127.0.0.1:9/v1"}}
    tree = {"home": folder, "database": {"url": url}, "identity": {"groups": groups}, "models": models}
    return Config.model_validate(tree)


async def test_a_server_that_starts_takes_away_what_groups_give_no_more(database: Database, tmp_path: Path) -> None:
    keys, before = KeyStore(database), config_of(database, tmp_path, ops=["operator"], staff=["viewer"])
    people = People(keys, before.identity)
    ann, ben = await people.create("ann"), await people.create("ben")
    await people.create_group("ops", external_id=None, members=[ann.id])
    await people.create_group("staff", external_id=None, members=[ann.id, ben.id])
    await keys.create("ann's", user="ann", scopes=["operator", "viewer"])
    for _ in range(2):
        app = create_app(config_of(database, tmp_path, staff=["viewer"]), {})
        async with app.router.lifespan_context(app):
            pass
    scopes = [key.scopes for key in await keys.list() if key.user is not None]
    assert scopes == [("viewer",)] * 3
    (told,) = await AuditLog(database).entries(action="people.settled")
    assert told.detail["people"] == [ann.id]


async def test_who_is_deactivated_gets_no_new_key(database: Database, tmp_path: Path) -> None:
    keys = KeyStore(database)
    await People(keys, config_of(database, tmp_path).identity).create("ann", active=False)
    await keys.create("a spare one")
    with pytest.raises(BadRequestError, match="deactivated"):
        await keys.create("ann's", user="ann")
    with pytest.raises(BadRequestError, match="deactivated"):
        await keys.update("a spare one", user="ann")
