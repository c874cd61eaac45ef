"""A key's life: made, shown once, used within its bounds, expired or revoked. On SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import text, update

from wootz.core import AuthenticationError, BadRequestError, NotFoundError
from wootz.gateway import KeyStore
from wootz.gateway.keys import KeyRow
from wootz.store import Database


@pytest.fixture
def keys(database: Database) -> KeyStore:
    return KeyStore(database)


async def test_a_new_key_authenticates(keys: KeyStore) -> None:
    expires = datetime.now(UTC) + timedelta(days=1)
    key, token = await keys.create(
        "ci", scopes=["inference"], models=["a", "b"], requests_per_minute=5, expires_at=expires
    )
    assert token.startswith("sk-wootz-")
    assert len(token) == len("sk-wootz-") + 43
    assert token.startswith(key.prefix)
    assert await keys.authenticate(token) == key
    assert (key.models, key.requests_per_minute, key.expires_at) == (("a", "b"), 5, expires)
    assert key.may_use("a")
    assert not key.may_use("c")
    assert key.may("inference")
    assert not key.may("admin")


async def test_only_the_hash_is_kept(keys: KeyStore, database: Database) -> None:
    _, token = await keys.create("ci")
    async with database.session() as session:
        (row,) = (await session.execute(text("select * from keys"))).all()
    assert not any(token in str(value) or token[-20:] in str(value) for value in row)


async def test_an_unknown_token_is_refused(keys: KeyStore) -> None:
    _, token = await keys.create("ci")
    for wrong in ("", "sk-wootz-", token[:-1], token + "x", token.upper(), "é\x00"):
        with pytest.raises(AuthenticationError):
            await keys.authenticate(wrong)


async def test_a_revoked_key_is_refused_by_id_or_name(keys: KeyStore) -> None:
    by_id, first = await keys.create("one")
    _, second = await keys.create("two")
    revoked = await keys.revoke(by_id.id)
    await keys.revoke("two")
    for token in (first, second):
        with pytest.raises(AuthenticationError) as refusal:
            await keys.authenticate(token)
        assert refusal.value.code == "api_key_revoked"
    assert (await keys.revoke("one")).revoked_at == revoked.revoked_at


@pytest.mark.parametrize("name", ["none", "no\x00ne"])
async def test_revoking_a_key_that_is_not_there(keys: KeyStore, name: str) -> None:
    with pytest.raises(NotFoundError):
        await keys.revoke(name)


async def test_an_expired_key_is_refused(keys: KeyStore, database: Database) -> None:
    _, token = await keys.create("short", expires_at=datetime.now(UTC) + timedelta(hours=1))
    await keys.authenticate(token)
    async with database.session() as session:
        await session.execute(update(KeyRow).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    keys.cache.clear()
    with pytest.raises(AuthenticationError) as refusal:
        await keys.authenticate(token)
    assert refusal.value.code == "api_key_expired"


async def test_a_name_means_one_key_for_ever(keys: KeyStore) -> None:
    await keys.create("ci")
    await keys.revoke("ci")
    with pytest.raises(BadRequestError) as refusal:
        await keys.create("ci")
    assert refusal.value.code == "name_taken"
    assert [key.name for key in await keys.list()] == ["ci"]


@pytest.mark.parametrize(
    ("fault", "param"),
    [
        ({"name": " "}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes"),
        ({"models": []}, "models"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"requests_per_minute": 2**40}, "requests_per_minute"),
        ({"expires_at": datetime(2999, 1, 1)}, "expires_at"),
        ({"expires_at": datetime(2000, 1, 1, tzinfo=UTC)}, "expires_at"),
        ({"expires_at": datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-5)))}, "expires_at"),
    ],
)
async def test_a_key_that_makes_no_sense_is_not_made(fault: dict, param: str) -> None:
    keys = KeyStore(Database("sqlite+aiosqlite:////nowhere/wootz.db"))
    with pytest.raises(BadRequestError) as refusal:
        await keys.create(**{"name": "ci", **fault})
    assert refusal.value.param == param


async def test_the_admin_key_is_made_once(keys: KeyStore) -> None:
    token = await keys.ensure_admin()
    assert token is not None
    admin = await keys.authenticate(token)
    assert admin.is_admin
    assert admin.may("inference")
    assert admin.may_use("anything")
    assert await keys.ensure_admin() is None
    await keys.revoke(admin.id)
    assert await keys.ensure_admin() is None, "a revoked admin must not come back by a restart"
