"""Erasing a person: their marker is planted in every store, and afterwards in no byte of any file."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from kept_bodies import some_master_key, write_with_body
from sqlalchemy import func, insert, select, text

from wootz.core import Config
from wootz.gateway import Key, KeyStore
from wootz.gateway.caches import Caches
from wootz.gateway.identity.erasure import Eraser, Erasures
from wootz.gateway.identity.people import People
from wootz.gateway.identity.sessions import Sessions
from wootz.gateway.kept import Kept
from wootz.gateway.surfaces.batch_journal import Journal
from wootz.gateway.surfaces.batch_store import BatchStore, batches
from wootz.gateway.surfaces.file_store import FileStore, files
from wootz.gateway.surfaces.response_store import ResponseStore, responses
from wootz.gateway.tasks import TaskRow
from wootz.store import Database
from wootz.store.audit import AuditLog
from wootz.telemetry import Ledger, RequestRecord, Spool, UnderWay
from wootz.telemetry.alerts import IncidentRow, Incidents, Links, Receiver
from wootz.telemetry.alerts.notices import notices_of
from wootz.telemetry.ledger import requests
from wootz.telemetry.signals import Signals, signals

MARKER = "Xanthippe"
NAME = f"{MARKER}@example.com"
NOW = datetime.now(UTC)


def record(request_id: str, **fields) -> RequestRecord:
    plain = {"route": "/v1/chat/completions", "model": "m", "provider": "p", "stream": False, "status": 200}
    return RequestRecord(
        request_id=request_id, started_at=NOW, cost=Decimal("0.5"), **{**plain, "key_id": None, **fields}
    )


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate({"home": tmp_path, "caches": {"exact": {"enabled": True}}})


async def planted(database: Database, config: Config, caches: Caches) -> None:
    """The marker, wherever a person leaves one."""
    keys = KeyStore(database)
    people = People(keys, config.identity)
    person = await people.create(NAME, external_id=f"{MARKER}-42", profile={"displayName": MARKER})
    await people.grant(NAME, ["auditor"])
    await people.create_group("readers", external_id=None, members=[person.id])
    key, _ = await keys.create(f"{MARKER}'s laptop", user=NAME, tags={"machine": MARKER})
    await Sessions(keys, config.identity).open(await keys.get(f"console-{person.id}"), "oidc")
    other, _ = await keys.create("somebody else's")

    ledger, spool = Ledger(database), Spool(config.home / "unwritten")
    for number, (user, key_id) in enumerate([(person.id, key.id), (NAME, other.id), (None, key.id)]):
        asked = record(f"r{number}", user=user, key_id=key_id, tags={"who": MARKER}, prompt_hash="ab")
        await write_with_body(ledger, asked, MARKER, MARKER, some_master_key())
    await ledger.write(record("others", user="ben", key_id=other.id, tags={"who": "ben"}, prompt_hash="cd"))
    of_key = record("waiting of a key", key_id=key.id, user=None, tags={"who": MARKER})
    spool.add([record("waiting", user=NAME, tags={"who": MARKER}), of_key, record("waiting too", user="ben")])

    (config.home / "files").mkdir()
    (config.home / "batches" / "batch-1").mkdir(parents=True)
    for file in ("files/file-1", "batches/batch-1/output.jsonl"):
        (config.home / file).write_text(MARKER)
    (config.home / "files" / "file-2").write_text("ben's")
    file = {"created_at": 1, "filename": f"{MARKER}.jsonl", "purpose": "batch", "bytes": 9}
    batch = {"id": "batch-1", "created_at": 1, "status": "in_progress", "claimed_until": 0, "batch": MARKER}
    response = {"id": "resp-1", "created_at": 1, "input": MARKER, "response": MARKER, "user": NAME}
    task = TaskRow(
        id="task-1", key_id=key.id, request_id="r", route="/", model="m", upstream_id="u", status="SUCCEEDED",
        output={"text": MARKER}, usage={}, urls=[f"http://x.test/{MARKER}"], submitted_at=NOW,
    )  # fmt: skip
    await sealed(database, config, key)
    async with database.session() as sql:
        await sql.execute(insert(files), [file | {"id": "file-1", "owner": key.id}])
        await sql.execute(insert(files), [file | {"id": "file-2", "owner": other.id, "filename": "ben.jsonl"}])
        await sql.execute(insert(batches), [batch | {"owner": key.id}])
        await sql.execute(insert(responses), [response | {"owner": other.id}])
        sql.add(task)
    await caches.store.put(b"one", MARKER.encode(), 60, model="m", tenant="t", user=person.id)
    await caches.store.put(b"two", MARKER.encode(), 60, model="m", tenant="t", user=NAME)
    await caches.store.put(b"three", b"ben's", 60, model="m", tenant="t", user="ben")
    await ledger.close()
    await alerted(database, person.id, key)


async def sealed(database: Database, config: Config, key: Key) -> None:
    """What this version keeps; the rest is of before it was encrypted."""
    kept = Kept(database, some_master_key())
    response = {"id": "resp-2", "created_at": 1, "previous_response_id": None, "output": MARKER}
    await ResponseStore(database, kept).save(None, response, [{"text": MARKER}], NAME)
    source = io.BytesIO(MARKER.encode())
    store = FileStore(database, kept, config.files_folder / "files", 2**20)
    await store.add(key.id, source, filename=MARKER, purpose="batch", check=lambda _: None)
    await BatchStore(database, kept).create(key.id, {"id": "batch-2", "created_at": 1, "status": "completed"})
    Journal(config.files_folder / "batches" / "batch-2", await kept.key(), b"").append("output", {"said": MARKER})


async def alerted(database: Database, user_id: str, key: Key) -> None:
    """Signals and alerts about the person, and others with which they had to do."""
    signals, now = Signals(database), datetime.now(UTC)
    await signals.note("injection_attempt", user=NAME)
    await signals.note("resolved", 0.0, user=user_id, key_id=key.id, subject=f"{MARKER}'s conversation")
    await signals.note("resolved", 1.0, user="ben")
    action = {"what": f'limit user "{NAME}"', "steps": {"kind": "user", "subject": user_id}}
    incidents = [
        incident("about", "injection-attempts", NAME),
        incident("by id", "user-spend", user_id, detail={"culprit": {"user": user_id, "key_id": key.id}}),
        incident("others", "provider-errors", "qwen", acknowledged_by=key.name),
        incident("cause", "cost-spike", "all", detail={"culprit": {"user": NAME}}, action_detail=action),
    ]
    receiver = Receiver("pager", "http://x.test", b"", "info", True)
    async with database.session() as sql:
        sql.add_all(incidents)
        await sql.flush()
        for one in incidents:
            sql.add_all(notices_of("incident.opened", one, None, [receiver], Links("x"), now))
    alerts = Incidents(database)
    await alerts.silence("injection-attempts", NAME, timedelta(hours=1), why="-", by="ben")
    await alerts.silence("provider-errors", "qwen", timedelta(hours=1), why="-", by=key.name)


def incident(id: str, rule: str, subject: str, **fields) -> IncidentRow:
    plain = {
        "state": "open", "severity": "critical", "value": 1, "worst": 1, "began_at": NOW, "detail": {},
        "action_state": "none", "action_detail": {}, "live": f"{rule} {subject}",
    }  # fmt: skip
    return IncidentRow(id=id, rule=rule, subject=subject, **plain | fields)


async def everything(database: Database, home: Path) -> bytes:
    """All rows of all tables as text, and all bytes of all files."""
    found = []
    async with database.session() as sql:
        if database.dialect == "sqlite":
            query = "select name from sqlite_master where type = 'table'"
        else:
            query = "select tablename from pg_tables where schemaname = 'public'"
        for table in (await sql.scalars(text(query))).all():
            found.append(str((await sql.execute(text(f'select * from "{table}"'))).all()).encode())
    await database.close()
    return b"\n".join([*found, *_bytes_of(home)])


def _bytes_of(folder: Path) -> list[bytes]:
    return [file.name.encode() + b" " + file.read_bytes() for file in folder.rglob("*") if file.is_file()]


async def test_no_byte_of_a_person_is_left_and_all_sums_are(database: Database, config: Config) -> None:
    caches = Caches(config, {})
    await planted(database, config, caches)
    report = await Eraser(database, config).erase(NAME, caches)
    assert report.user.startswith("user")
    assert report.counts == {
        "bodies": 3, "responses": 2, "tasks": 1, "files": 2, "batches": 2, "records": 3, "sessions": 1, "keys": 2,
        "people": 1, "cached_answers": 2, "records_waiting": 2, "signals": 2, "alerts": 8,
    }  # fmt: skip
    async with database.session() as sql:
        assert await sql.scalar(select(func.sum(requests.c.cost))) == Decimal(2)
        assert (await sql.scalar(select(requests.c.user).where(requests.c.request_id == "others"))) == "ben"
        assert (await sql.scalar(select(func.count()).select_from(signals))) == 1
        steps = await sql.scalar(select(IncidentRow.action_detail).where(IncidentRow.id == "cause"))
    assert steps == {"what": 'limit user "erased"', "steps": {"kind": "user", "subject": report.user}}
    assert [one.id for one in await Incidents(database).list()] == ["cause", "others"]
    assert [one.created_by for one in await Incidents(database).silences()] == ["erased"]
    assert (await caches.store.size()).entries == 1
    assert (await AuditLog(database).verify()).holds
    again = await Eraser(database, config).erase(NAME, caches)
    assert sum(again.counts.values()) == 0
    assert [one.name for one in (config.home / "files").iterdir()] == ["file-2"]
    assert not [*(config.home / "batches").iterdir()]
    left = await everything(database, config.home)
    assert MARKER.encode() not in left
    assert b"ben.jsonl" in left
    assert b"ben's" in left


async def test_another_process_forgets_its_answers_and_what_was_under_way(database: Database, config: Config) -> None:
    here, there = Caches(config, {}), Caches(config, {})
    watching = Erasures(database, there, under_way := UnderWay(config.home / "under_way"))
    await watching.catch_up()
    for id, user in (("over", "ann"), ("not yet", "ben")):
        under_way.begin(record(id, user=user))
    under_way.kept("over")
    await there.store.put(b"one", b"x", 60, model="m", tenant="t", user="ann")
    await watching.catch_up()
    assert (await there.store.size()).entries == 1
    await Eraser(database, config).erase("ann", here)
    await watching.catch_up()
    assert (await there.store.size()).entries == 0
    (kept,) = _bytes_of(config.home / "under_way")
    assert b"ben" in kept
    assert b"ann" not in kept


async def test_the_keys_of_who_is_erased_are_refused(database: Database, config: Config) -> None:
    keys = KeyStore(database)
    await keys.create_account("user", "ann")
    _, token = await keys.create("ann's", user="ann")
    await Eraser(database, config).erase("ann", Caches(config, {}))
    (key,) = await keys.list()
    assert key.revoked_at is not None
    assert "ann" not in key.name
    assert token not in str(key)
    await keys.create_account("user", "ann")  # The name is free again.
