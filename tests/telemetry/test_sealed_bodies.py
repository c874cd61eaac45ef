"""Bodies are encrypted at rest: what lies on the disk, what opens and what does not, and what a lost key costs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from kept_bodies import on_the_disk, some_master_key, write_with_body
from sqlalchemy import insert, select, update

from wootz.core import ConfigError
from wootz.core.wire import ChatRequest, ChunkChoice, Delta
from wootz.store import Database
from wootz.store.secrets.data_keys import PAUSE, DataKeys
from wootz.store.secrets.envelope import KeyWrapper, MasterKey
from wootz.telemetry import BodyStore, KeepBodies, Ledger, RequestRecord, Telemetry
from wootz.telemetry.bodies import bodies, body_keys
from wootz.telemetry.plain_bodies import seal_plain_bodies

CANARY = "the-heron-flies-at-noon"
NOW = datetime.now(UTC)


class Lock:
    """A master key that can be lost, and changed."""

    def __init__(self) -> None:
        self.key: KeyWrapper | None = MasterKey(os.urandom(32))
        self.asked = 0

    def __call__(self) -> KeyWrapper:
        self.asked += 1
        if self.key is None:
            raise ConfigError("the master key is gone", hint="restore it")
        return self.key


@pytest.fixture
def lock() -> Lock:
    return Lock()


@pytest.fixture
async def ledger(database: Database) -> AsyncIterator[Ledger]:
    ledger = Ledger(database)
    yield ledger
    await ledger.close()


def record(request_id: str, **fields) -> RequestRecord:
    plain = {"started_at": NOW, "route": "/v1/chat/completions", "key_id": "key-1", "model": "m", "provider": "p"}
    return RequestRecord(request_id=request_id, stream=False, status=200, **{**plain, **fields})


async def answered(database: Database, lock: Callable[[], KeyWrapper], request_id: str, text: str) -> Telemetry:
    """As the gateway does it, from the request to the row."""
    telemetry = Telemetry(Ledger(database), {}, keep_bodies=KeepBodies(BodyStore(database, lock), 7, 4096))
    asked = ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": text}]})
    observation = telemetry.observe(
        request_id=request_id, route="/", key_id="key-1", model="m", provider="p", stream=True, body=asked
    )
    assert observation.body is not None
    observation.body.add(ChunkChoice(index=0, delta=Delta(content=text)))
    await observation.end()
    return telemetry


def keys_at(database: Database, lock: Lock, now: list[datetime]) -> DataKeys:
    return DataKeys(database, body_keys, "wootz body key", lock, clock=lambda: now[0])


async def plain(database: Database, request_id: str, text: str) -> None:
    """A row of before bodies were encrypted."""
    row = {"request_id": request_id, "user": "ann", "expires_at": NOW + timedelta(days=20)}
    async with database.session() as session:
        await session.execute(insert(bodies), [row | {"request": text, "answer": "[]"}])


async def test_no_byte_of_a_body_lies_on_the_disk(
    database: Database, lock: Lock, request: pytest.FixtureRequest
) -> None:
    canary, control = (f"heron-{os.urandom(8).hex()}" for _ in range(2))
    telemetry = await answered(database, lock, "r1", canary)
    await plain(database, "r2", control)
    kept = await BodyStore(database, lock).get(await telemetry.ledger.get("r1"))
    assert kept is not None
    assert canary in kept.request
    assert canary in kept.answer
    written = on_the_disk(database, request)
    assert canary.encode() not in written
    assert control.encode() in written
    await telemetry.close()


@pytest.mark.parametrize("what", ["swapped", "moved to another tenant's key", "a team put in", "one bit"])
async def test_a_body_opens_for_its_own_request_only(ledger: Ledger, lock: Lock, what: str) -> None:
    for number in (1, 2):
        store = await write_with_body(ledger, record(f"r{number}"), f"text {number}", "[]", lock)
    record_1 = await ledger.get("r1")
    async with ledger.database.session() as session:
        sealed = {row.request_id: row for row in await session.execute(select(bodies))}

        async def put(request_id: str, sealed: bytes, sealed_with: str) -> None:
            at = update(bodies).where(bodies.c.request_id == request_id)
            await session.execute(at.values(sealed=sealed, sealed_with=sealed_with))

        if what == "swapped":
            await put("r1", sealed["r2"].sealed, sealed["r2"].sealed_with)
            await put("r2", sealed["r1"].sealed, sealed["r1"].sealed_with)
        elif what == "one bit":
            flipped = bytearray(sealed["r1"].sealed)
            flipped[20] ^= 1
            await put("r1", bytes(flipped), sealed["r1"].sealed_with)
    if what == "moved to another tenant's key":
        record_1 = msgspec.structs.replace(record_1, key_id="key-2")
    if what == "a team put in":
        record_1 = msgspec.structs.replace(record_1, team_id="theirs")
    with pytest.raises(ConfigError, match="what r1 said: it is not what was stored under this id"):
        await store.get(record_1)
    if what == "swapped":
        with pytest.raises(ConfigError, match="not what was stored"):
            await store.get(await ledger.get("r2"))


async def test_keys_do_not_stand_in_for_each_other(ledger: Ledger, lock: Lock) -> None:
    for number in (1, 2):  # Two processes, two keys.
        await write_with_body(ledger, record(f"r{number}"), "text", "[]", lock)
    async with ledger.database.session() as session:
        one, other = (await session.execute(select(body_keys))).all()
        at = update(body_keys).where(body_keys.c.id == one.id)
        await session.execute(at.values(wrapped_key=other.wrapped_key))
        (row,) = (await session.execute(select(bodies.c.request_id).where(bodies.c.sealed_with == one.id))).all()
    with pytest.raises(ConfigError, match="does not open"):
        await BodyStore(ledger.database, lock).get(await ledger.get(row.request_id))


async def test_another_master_key_is_one_clear_error(ledger: Ledger, lock: Lock) -> None:
    await write_with_body(ledger, record("r1"), CANARY, "[]", lock)
    asked = await ledger.get("r1")
    with pytest.raises(ConfigError) as wrong:
        await BodyStore(ledger.database, some_master_key()).get(asked)
    assert str(wrong.value) == (
        "what r1 said: the master key does not open it; give the key it was written with (secrets.master_key)"
    )
    async with ledger.database.session() as session:
        await session.execute(body_keys.delete())
    with pytest.raises(ConfigError, match="what r1 said: the key that it was sealed with is no longer"):
        await BodyStore(ledger.database, lock).get(asked)


async def test_without_a_key_the_record_is_kept_and_nothing_in_plain(
    database: Database, lock: Lock, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    lock.key, canary = None, f"heron-{os.urandom(8).hex()}"
    telemetry = await answered(database, lock, "r1", canary)
    assert (await telemetry.ledger.get("r1")).status == 200
    assert canary.encode() not in on_the_disk(database, request)
    assert "r1: what was said is not kept: the master key is gone; restore it" in caplog.text
    assert canary not in caplog.text
    assert "wootz_bodies_lost_total 1.0" in telemetry.metrics_text().decode()
    await telemetry.close()


async def test_a_key_service_that_is_away_is_not_asked_by_every_answer(database: Database, lock: Lock) -> None:
    now = [NOW]
    keys, (kept, lock.key) = keys_at(database, lock, now), (lock.key, None)
    for _ in range(5):
        with pytest.raises(Exception, match="key"):
            await keys.todays(NOW)
    assert lock.asked == 1
    lock.key = kept
    now[0] += PAUSE
    assert await keys.todays(NOW)


async def test_where_no_new_key_can_be_made_the_one_before_seals_on(
    database: Database, lock: Lock, caplog: pytest.LogCaptureFixture
) -> None:
    now = [datetime(2026, 5, 1, 9, tzinfo=UTC)]
    keys, days = keys_at(database, lock, now), timedelta(days=7)
    first = await keys.todays(now[0] + days)
    kept, lock.key = lock.key, None
    for _ in range(2):
        now[0] += timedelta(days=1)
        assert await keys.todays(now[0] + days) == first
    assert "no new one, so the one before seals on: the master key is gone" in caplog.text
    now[0] += timedelta(days=1)
    with pytest.raises(ConfigError, match="gone"):  # It ends before what it would seal.
        await keys.todays(now[0] + days)
    now[0], lock.key = now[0] + PAUSE, kept
    assert (await keys.todays(now[0] + days)).id != first.id


async def test_each_day_has_a_key_that_goes_with_its_last_body(database: Database, lock: Lock) -> None:
    now = [datetime(2026, 5, 1, 9, tzinfo=UTC)]
    keys, days = keys_at(database, lock, now), timedelta(days=7)
    first = await keys.todays(now[0] + days)
    now[0] += timedelta(hours=14, minutes=59)
    assert await keys.todays(now[0] + days) == first
    assert first.expires_at > now[0] + days
    now[0] += timedelta(minutes=2)
    second = await keys.todays(now[0] + days)
    assert second.id != first.id
    assert (await keys.todays(now[0] + timedelta(days=90))).expires_at > now[0] + timedelta(days=90)
    await keys.sweep(first.expires_at)
    assert (await keys.find(second.id)).key == second.key
    with pytest.raises(ConfigError, match="no longer"):
        await keys.find(first.id)


async def test_a_new_master_key_opens_what_the_old_one_locked(ledger: Ledger, lock: Lock) -> None:
    await write_with_body(ledger, record("r1"), CANARY, "[]", lock)
    old, lock.key = lock.key, MasterKey(os.urandom(32))
    assert old is not None
    await write_with_body(ledger, record("r2"), CANARY, "[]", lock)
    store = BodyStore(ledger.database, lock)
    assert [await store.keys.rewrap(old) for _ in range(2)] == [1, 0]
    for request_id in ("r1", "r2"):
        kept = await store.get(await ledger.get(request_id))
        assert kept is not None
        assert kept.request == CANARY
    with pytest.raises(ConfigError, match="does not open"):
        await BodyStore(ledger.database, some_master_key()).keys.rewrap(MasterKey(os.urandom(32)))


async def test_bodies_of_before_are_readable_and_then_encrypted(
    ledger: Ledger, lock: Lock, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    canary = f"heron-{os.urandom(8).hex()}"
    asked, store = record("r1", user="ann", team_id="t"), BodyStore(ledger.database, lock)
    await ledger.write(asked)
    await plain(ledger.database, "r1", canary)
    before = await store.get(asked)
    assert before is not None
    assert before.request == canary

    kept, lock.key = lock.key, None
    with pytest.raises(ConfigError):
        await seal_plain_bodies(store)
    assert await store.get(asked) == before
    lock.key = kept
    store = BodyStore(ledger.database, lock)
    assert [await seal_plain_bodies(store) for _ in range(2)] == [1, 0]
    assert await store.get(asked) == before
    if ledger.database.dialect == "sqlite":  # PostgreSQL's log and free space keep it until they are recycled.
        assert canary.encode() not in on_the_disk(ledger.database, request)
    async with ledger.database.session() as session:
        row = (await session.execute(select(bodies))).one()
    assert (row.request, row.answer) == (None, None)
    assert (await store.keys.find(row.sealed_with)).expires_at > before.expires_at
