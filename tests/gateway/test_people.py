"""People: what their keys may do follows from their groups, also when the config changes while nobody looks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scim2_models import Path as ScimPath
from scim2_models import User, default_comparison_key
from sqlalchemy import String, literal, select, text

from wootz.app.http import create_app
from wootz.core import BadRequestError, Config
from wootz.core.sections import IdentityConfig
from wootz.gateway import KeyStore
from wootz.gateway.identity import people as people_module
from wootz.gateway.identity.people import People
from wootz.gateway.identity.rows import alike
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


CHANGES = [str.upper, str.lower, str.swapcase, *(partial(normalize, form) for form in ("NFC", "NFD"))]
LETTERS = st.text(st.sampled_from("kKiIsSßüÜuİıςσΣé\u0308\u0307%_\\a "), max_size=6)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=LETTERS, other=LETTERS, change=st.sampled_from([None, *CHANGES]), exact=st.booleans())
async def test_what_scim_holds_equal_is_found_in_the_database(
    database: Database, kept: str, other: str, change: Callable[[str], str] | None, exact: bool
) -> None:
    asked = change(kept) if change is not None else other
    binding = ScimPath[User]("externalId" if exact else "userName").resolve()
    async with database.session() as sql:
        found = await sql.scalar(select(literal(1)).where(alike(literal(kept, String), asked, exact=exact)))
    if default_comparison_key(binding, kept) == default_comparison_key(binding, asked):
        assert found == 1
    elif kept.isascii() and asked.isascii():
        assert found is None


async def test_one_of_many_is_looked_up_and_not_looked_for(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    people, made = People(KeyStore(database), IdentityConfig()), []
    for name in ("ann", "ben", "cleo"):
        await people.create(name, external_id=f"{name}-1")
    monkeypatch.setattr(people_module, "Person", lambda **fields: made.append(fields["name"]))
    await people.list(name="Ben")
    await people.list(external_id="cleo-1")
    assert made == ["ben", "cleo"]
    if database.dialect == "sqlite":
        query = "explain query plan select * from accounts where lower(accounts.name) = 'ben'"
        async with database.session() as sql:
            assert "ix_accounts_lower_name" in str((await sql.execute(text(query))).all())
