"""Teams, users, tags; keys that are rotated, cached, and set by the config. On SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, update

from wootz.core import AuthenticationError, BadRequestError, ConfigError, NotFoundError
from wootz.gateway import KeyStore
from wootz.gateway.keys import KeyRow
from wootz.store import Database

MASTER = "m" * 40


@pytest.fixture
def keys(database: Database) -> KeyStore:
    return KeyStore(database)


async def test_a_key_brings_the_limits_of_all_it_belongs_to(keys: KeyStore) -> None:
    await keys.create_account("team", "research", tokens_per_day=1000)
    await keys.create_account("user", "ada", concurrent_requests=2)
    await keys.create_account("tag", "feature=support", requests_per_minute=5)
    tags = {"feature": "support", "cost_center": "42"}
    budget = {"budget_usd": "1.5", "budget_period": "daily"}
    made, token = await keys.create("k", team="research", user="ada", tags=tags, **budget)
    key = await keys.authenticate(token)
    assert key == made
    assert [(one.kind, one.limits.plain) for one in key.subjects] == [
        ("key", budget),
        ("team", {"tokens_per_day": 1000}),
        ("user", {"concurrent_requests": 2}),
        ("tag", {"requests_per_minute": 5}),
    ]
    assert key.tenant == key.subjects[1].id
    for subject in key.subjects:
        assert await keys.keys_of(subject) == [key.id]
    await keys.limit_account("team", "research")
    assert (await keys.authenticate(token)).subjects[1].limits.plain == {}, "changes hold at once"


async def test_accounts_have_names_of_their_own_and_go_when_no_key_needs_them(keys: KeyStore) -> None:
    await keys.create_account("team", "a")
    await keys.create_account("user", "a")
    with pytest.raises(BadRequestError):
        await keys.create_account("team", "a")
    await keys.create("k", team="a")
    with pytest.raises(BadRequestError) as refusal:
        await keys.delete_account("team", "a")
    assert refusal.value.code == "account_in_use"
    await keys.update("k", team=None)
    await keys.delete_account("team", "a")
    with pytest.raises(NotFoundError):
        await keys.create("other", team="a")


@pytest.mark.parametrize(
    ("fault", "param"),
    [
        ({"budget_usd": "1"}, "budget_usd"),
        ({"budget_period": "daily"}, "budget_usd"),
        ({"budget_usd": "-1", "budget_period": "daily"}, "budget_usd"),
        ({"budget_usd": "much", "budget_period": "daily"}, "budget_usd"),
        ({"budget_usd": "NaN", "budget_period": "daily"}, "budget_usd"),
        ({"budget_usd": "1e-13", "budget_period": "daily"}, "budget_usd"),
        ({"budget_usd": "4000000", "budget_period": "daily"}, "budget_usd"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"time_zone": "../../etc/passwd"}, "time_zone"),
        ({"reset_hour": 24}, "reset_hour"),
        ({"tokens_per_day": 0}, "tokens_per_day"),
        ({"tags": {"a b": "c"}}, "tags"),
        ({"tags": {"a": ""}}, "tags"),
        ({"token": "short"}, "secret"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(fault: dict, param: str) -> None:
    keys = KeyStore(Database("sqlite+aiosqlite:////nowhere/wootz.db"))
    with pytest.raises(BadRequestError) as refusal:
        await keys.create("k", **fault)
    assert refusal.value.param == param


async def test_rotation_keeps_the_key_and_for_a_while_its_old_secret(keys: KeyStore, database: Database) -> None:
    key, first = await keys.create("k")
    _, second = await keys.rotate("k", timedelta(hours=1))
    assert (await keys.authenticate(first)).id == (await keys.authenticate(second)).id == key.id
    async with database.session() as session:
        await session.execute(update(KeyRow).values(previous_expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    keys.cache.clear()
    with pytest.raises(AuthenticationError) as refusal:
        await keys.authenticate(first)
    assert refusal.value.code == "api_key_expired"
    await keys.authenticate(second)
    _, third = await keys.rotate("k", timedelta(0))
    for old in (first, second):
        with pytest.raises(AuthenticationError):
            await keys.authenticate(old)
    assert await keys.has_secret("k", third)
    await keys.revoke("k")
    with pytest.raises(BadRequestError):
        await keys.rotate("k", timedelta(0))


async def test_the_master_key_follows_the_config(keys: KeyStore) -> None:
    with pytest.raises(ConfigError):
        await keys.set_master("guess me")
    await keys.set_master(MASTER)
    assert await keys.ensure_admin() is None
    assert (await keys.authenticate(MASTER)).is_admin
    with pytest.raises(BadRequestError):
        await keys.revoke("master")
    await keys.set_master("n" * 40)
    keys.cache.clear()
    for token, known in ((MASTER, False), ("n" * 40, True)):
        if known:
            await keys.authenticate(token)
        else:
            with pytest.raises(AuthenticationError):
                await keys.authenticate(token)
    await keys.set_master(None)
    keys.cache.clear()
    with pytest.raises(AuthenticationError):
        await keys.authenticate("n" * 40)


async def test_a_known_key_costs_no_read_and_what_another_process_does_is_seen_a_second_later(
    keys: KeyStore, database: Database
) -> None:
    now, reads = [0.0], []
    keys.cache._clock = lambda: now[0]
    _, token = await keys.create("k")
    await keys.authenticate(token)
    event.listen(database.engine.sync_engine, "before_cursor_execute", lambda *args: reads.append(args[2]))
    for now[0] in (0.1, 0.9):
        await keys.authenticate(token)
    assert reads == []
    await KeyStore(database).revoke("k")
    now[0] = 1.1
    with pytest.raises(AuthenticationError):
        await keys.authenticate(token)
    await keys.create("fresh")
    _, token = await keys.create("mine")
    await keys.authenticate(token)
    await keys.revoke("mine")
    with pytest.raises(AuthenticationError):
        await keys.authenticate(token)


async def test_a_guess_learns_nothing_from_what_is_looked_up(keys: KeyStore, database: Database) -> None:
    """A near miss and a far one make the same statements, with nothing of the token in them but its hash."""
    _, token = await keys.create("k")
    said = []
    event.listen(
        database.engine.sync_engine, "before_cursor_execute", lambda *args: said.append((args[2], len(str(args[3]))))
    )
    traces, errors = [], []
    for guess in (token[:-1] + ("a" if token[-1] != "a" else "b"), "sk-wootz-" + "0" * 43, "x"):
        said.clear()
        with pytest.raises(AuthenticationError) as refusal:
            await keys.authenticate(guess)
        traces.append(list(said))
        errors.append(refusal.value.to_openai())
    assert traces[0] == traces[1] == traces[2]
    assert errors[0] == errors[1] == errors[2]
