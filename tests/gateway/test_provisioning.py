"""Accounts out of a file: applied twice it changes nothing, and no secret is in it or comes out of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from fresh_database import fresh_sqlite

from wootz.core import AuthenticationError, ConfigError
from wootz.gateway import KeyStore
from wootz.gateway.limits.suggest import percentile, suggest
from wootz.gateway.provisioning import apply, plan, read_file
from wootz.store import Database
from wootz.telemetry import Ledger, RequestRecord

FILE = """
[teams.research]
tokens_per_day = 2_000_000
budget_usd = "800"
budget_period = "daily"
time_zone = "Asia/Shanghai"

[users.ada]

[tags."feature=support"]
requests_per_minute = 300

[keys.agent]
secret = "env:AGENT_KEY"
team = "research"
user = "ada"
tags = {feature = "support"}
models = ["scripted"]
requests_per_minute = 120
"""
SECRET = "a-secret-that-another-system-made-1234"


@pytest.fixture
async def keys(tmp_path: Path):
    database = Database(fresh_sqlite(tmp_path / "wootz.db"))
    yield KeyStore(database)
    await database.close()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENT_KEY", SECRET)
    file = tmp_path / "accounts.toml"
    file.write_text(FILE)
    return file


def write(file: Path, text: str) -> None:
    file.write_text(text)


async def test_applying_twice_changes_nothing(keys: KeyStore, file: Path) -> None:
    wanted = read_file(file)
    planned = await plan(wanted, keys)
    assert [(change.action, change.kind, change.name) for change in planned] == [
        ("create", "team", "research"),
        ("create", "user", "ada"),
        ("create", "tag", "feature=support"),
        ("create", "key", "agent"),
    ]
    assert await keys.list() == []
    assert await apply(wanted, keys) == planned
    key = await keys.authenticate(SECRET)
    assert [subject.name for subject in key.subjects] == ["agent", "research", "ada", "feature=support"]
    assert await plan(read_file(file), keys) == []
    assert SECRET not in repr(planned)


async def test_only_what_the_file_names_is_changed(keys: KeyStore, file: Path) -> None:
    await apply(read_file(file), keys)
    await keys.create("by hand", requests_per_minute=1)
    write(file, '[teams.research]\ntokens_per_day = 5\n[keys.agent]\nconcurrent_requests = 3\n[keys."by hand"]\n')
    changes = await apply(read_file(file), keys)
    assert [(change.action, change.name, change.fields) for change in changes] == [
        (
            "update",
            "research",
            {
                "tokens_per_day": (2000000, 5),
                "budget_usd": ("800", None),
                "budget_period": ("daily", None),
                "time_zone": ("Asia/Shanghai", None),
            },
        ),
        ("update", "agent", {"requests_per_minute": (120, None), "concurrent_requests": (None, 3)}),
    ]
    key = await keys.authenticate(SECRET)
    assert (key.models, key.limits.plain, key.team and key.team.limits.plain) == (
        ("scripted",), {"concurrent_requests": 3}, {"tokens_per_day": 5},
    )  # fmt: skip
    assert await plan(read_file(file), keys) == []


async def test_a_new_secret_rotates_the_key(keys: KeyStore, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await apply(read_file(file), keys)
    monkeypatch.setenv("AGENT_KEY", SECRET[::-1])
    assert [change.action for change in await apply(read_file(file), keys)] == ["rotate"]
    assert (await keys.authenticate(SECRET)).id == (await keys.authenticate(SECRET[::-1])).id
    assert await plan(read_file(file), keys) == []
    write(file, 'rotation_overlap = "0m"\n' + FILE)
    monkeypatch.setenv("AGENT_KEY", SECRET)
    await apply(read_file(file), keys)
    with pytest.raises(AuthenticationError):
        await keys.authenticate(SECRET[::-1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'[keys.k]\nsecret = "{SECRET}"', "keys.k.secret: write a reference"),
        ("[keys.k]\nrequests_per_hour = 1", "keys.k.requests_per_hour: unknown field"),
        ("[keys.k]\n", "keys.k is new and names no secret"),
        ('[keys.k]\nsecret = "env:UNSET_KEY"', '"env:UNSET_KEY" is not set'),
        ('[teams.t]\nbudget_usd = "5"', "teams.t: "),
        ("not toml", "accounts.toml"),
    ],
)
async def test_a_file_that_can_not_be_applied_says_where(keys: KeyStore, file: Path, text: str, said: str) -> None:
    write(file, text)
    with pytest.raises(ConfigError) as refusal:
        await plan(read_file(file), keys)
    assert said in str(refusal.value)
    assert SECRET not in str(refusal.value)


# --- ceilings ----------------------------------------------------------------------------------------------------


def test_percentiles_are_by_nearest_rank() -> None:
    assert percentile([5], 1) == 5
    assert percentile(list(range(1, 101)), 100) == 99
    assert percentile([7], 30) == 7
    assert percentile([7], 200) == 0


async def test_ceilings_are_ten_times_what_a_key_used(database: Database, file: Path) -> None:
    keys, ledger, now = KeyStore(database), Ledger(database), datetime(2026, 3, 31, 12, tzinfo=UTC)
    key, _ = await keys.create("agent")
    await keys.create("idle")
    for day in range(40):
        for number in range(2 if day == 3 else 1):
            await ledger.write(
                RequestRecord(
                    request_id=f"r{day}-{number}", started_at=now - timedelta(days=day, hours=1, seconds=number),
                    route="/v1/chat/completions", key_id=key.id, model="m", provider="p", stream=False, status=200,
                    prompt_tokens=100, completion_tokens=10 if day < 30 else 10**6, cost=Decimal("0.0123"),
                )
            )  # fmt: skip
    suggested = await suggest(database, now, 30)
    assert {name: limits.plain for name, limits in suggested.items()} == {
        key.id: {
            "requests_per_minute": 20,
            "tokens_per_minute": 2200,
            "tokens_per_day": 2200,
            "budget_usd": "0.25",
            "budget_period": "daily",
        }
    }
