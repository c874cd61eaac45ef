"""A request that was accepted leaves a record, whenever its server is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from wootz.core import UnavailableError
from wootz.core.wire import ChatRequest
from wootz.store import Database
from wootz.telemetry import Ledger, RequestRecord, Telemetry, UnderWay
from wootz.telemetry import under_way as module
from wootz.telemetry.ledger import MAX_GROUP, MOST_BEHIND
from wootz.telemetry.under_way import KILLED, Line

ASKED = ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hi"}]})


def record(id: str, **fields: Any) -> RequestRecord:
    now = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    return RequestRecord(
        request_id=id, started_at=now, route="/v1/x", key_id="k", model="m", provider="p", stream=False,
        **{"status": 0, **fields},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "under_way"


def files(folder: Path) -> list[Path]:
    return list(folder.glob("*.jsonl"))


DIES = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_under_way import record
from wootz.telemetry import UnderWay
under_way = UnderWay(Path({folder!r}))
for id in ("begun", "ended", "kept"):
    under_way.begin(record(id))
for id in ("ended", "kept"):
    under_way.ended(record(id, status=200, prompt_tokens=7), ["hold", 5.0, ["period", "n", 3, 0]])
under_way.kept("kept")
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_what_a_killed_process_had_under_way_is_recorded_once(database: Database, folder: Path) -> None:
    source = DIES.format(tests=str(Path(__file__).parent), folder=str(folder))
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", source, env=environ)
    assert await process.wait() == -signal.SIGKILL
    ledger, owed = Ledger(database), list[Any]()

    async def settle(one: Any) -> None:
        owed.append(one)

    assert await UnderWay(folder).recover(ledger, settle) == 2
    assert await UnderWay(folder).recover(ledger, settle) == 0
    begun, ended = await ledger.get("begun"), await ledger.get("ended")
    assert (begun.status, begun.error_code, begun.prompt_tokens) == (500, KILLED, 0)
    assert ended == record("ended", status=200, prompt_tokens=7)
    assert owed == [["hold", 5.0, ["period", "n", 3, 0]]]
    assert len(await ledger.list()) == 2
    assert not files(folder)


async def test_a_living_process_is_left_alone(database: Database, folder: Path) -> None:
    ledger, living = Ledger(database), UnderWay(folder)
    living.begin(record("a"))
    assert await UnderWay(folder).recover(ledger, None) == 0
    living.ended(record("a", status=200), None)
    living.kept("a")
    living.close()
    assert not files(folder)


async def test_a_line_that_was_cut_loses_no_other(database: Database, folder: Path) -> None:
    dead = UnderWay(folder)
    dead.begin(record("a"))
    (file,) = files(folder)
    content = file.read_bytes()
    (folder / "dead.jsonl").write_bytes(content + content.replace(b'"a"', b'"b"')[:-9])
    assert await UnderWay(folder).recover(Ledger(database), None) == 1
    dead.kept("a")
    dead.close()


async def test_the_file_stays_small_and_keeps_what_is_under_way(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "LONGEST_BYTES", 2000)
    under_way = UnderWay(folder)
    under_way.begin(record("long"))
    for number in range(100):
        under_way.begin(record(f"r{number}"))
        under_way.kept(f"r{number}")
    (file,) = files(folder)
    assert file.stat().st_size < 4000
    assert b'"long"' in file.read_bytes()
    under_way.kept("long")
    under_way.close()


async def test_an_observed_request_is_under_way_until_its_row_is_there(database: Database, folder: Path) -> None:
    ledger = Ledger(database)
    telemetry = Telemetry(ledger, {}, under_way=UnderWay(folder))
    fields: dict[str, Any] = {"route": "/v1/x", "key_id": None, "model": "m", "provider": "p", "stream": False}
    one = telemetry.observe(request_id="one", body=ASKED, **fields)
    line = telemetry.observe(request_id="line", body=(batch := ASKED.model_copy()), journey=batch.journey, **fields)
    batch.journey.lane = "batch"
    telemetry.observe(request_id="second line", journey=batch.journey, body=batch, **fields)
    (file,) = files(folder)
    assert b'"one"' in file.read_bytes()
    assert b"second line" not in file.read_bytes()
    for observation in (one, line):
        await observation.end()
    await telemetry.close()
    assert not files(folder)
    assert (await ledger.get("one")).cost == Decimal(0)


ENDS_AND_DIES = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_under_way import ASKED
from wootz.store import Database
from wootz.telemetry import Ledger, Telemetry, UnderWay

async def main():
    telemetry = Telemetry(Ledger(Database({url!r})), {{}}, under_way=UnderWay(Path({folder!r})))
    fields = {{"route": "/v1/x", "key_id": None, "model": "m", "provider": "p", "stream": False}}
    await asyncio.gather(*(telemetry.observe(request_id=f"r{{n}}", body=ASKED, **fields).end() for n in range(9)))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_an_answer_that_was_given_is_recorded_by_who_comes_after_a_kill(database: Database, folder: Path) -> None:
    """In SQLite the row is written behind the answer; the file has it by then. In PostgreSQL the row is there first."""
    url = database.url.render_as_string(hide_password=False)
    source = ENDS_AND_DIES.format(tests=str(Path(__file__).parent), folder=str(folder), url=url)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", source, env=environ)
    assert await process.wait() == -signal.SIGKILL
    ledger = Ledger(database)
    written = {one.request_id for one in await ledger.list()}
    assert written == (set() if database.dialect == "sqlite" else {f"r{n}" for n in range(9)})
    await UnderWay(folder).recover(ledger, None)
    assert {one.request_id: one.status for one in await ledger.list()} == {f"r{n}": 200 for n in range(9)}


async def test_who_reads_the_ledger_sees_what_is_written_behind(database: Database, folder: Path) -> None:
    telemetry = Telemetry(Ledger(database), {}, under_way=UnderWay(folder))
    fields: dict[str, Any] = {"route": "/v1/x", "key_id": None, "model": "m", "provider": "p", "stream": False}
    for number in range(3):
        await telemetry.observe(request_id=f"r{number}", body=ASKED, **fields).end()
        assert (await telemetry.ledger.get(f"r{number}")).status == 200
    assert len(await telemetry.ledger.list()) == 3
    await telemetry.observe(request_id="last", body=ASKED, **fields).end()
    assert [row.requests for row in await telemetry.ledger.report([])] == [4]
    await telemetry.close()
    assert not files(folder)


async def test_a_database_that_is_slow_slows_the_answers_and_not_the_memory_up(folder: Path, tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'slow.db'}")
    await database.migrate()
    telemetry = Telemetry(Ledger(database), {}, under_way=UnderWay(folder))
    fields: dict[str, Any] = {"route": "/v1/x", "key_id": None, "model": "m", "provider": "p", "stream": False}
    with closing(sqlite3.connect(tmp_path / "slow.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        number = MAX_GROUP + 3 * MOST_BEHIND
        ends = [asyncio.create_task(telemetry.observe(request_id=f"r{n}", body=ASKED, **fields).end())
                for n in range(number)]  # fmt: skip
        await asyncio.sleep(0.3)
        assert MOST_BEHIND <= sum(end.done() for end in ends) <= MAX_GROUP + MOST_BEHIND
        other.execute("ROLLBACK")
        await asyncio.gather(*ends)
    await telemetry.close()
    assert len(await telemetry.ledger.list(limit=number + 1)) == number
    assert not files(folder)
    await database.close()


async def test_without_a_line_in_the_file_an_answer_waits_for_its_row(database: Database, folder: Path) -> None:
    await asyncio.to_thread(folder.touch)
    telemetry = Telemetry(Ledger(database), {}, under_way=UnderWay(folder))
    fields: dict[str, Any] = {"route": "/v1/x", "key_id": None, "model": "m", "provider": "p", "stream": False}
    await telemetry.observe(request_id="one", body=ASKED, **fields).end()
    assert (await Ledger(database).get("one")).status == 200
    await telemetry.close()


def test_a_disk_that_takes_nothing_stops_nobody(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.touch()
    UnderWay(folder).begin(record("a"))
    assert "can't be written" in caplog.text


async def test_what_can_not_be_done_for_one_request_is_in_the_log_and_keeps_no_other(
    database: Database, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for process, id in enumerate(("refused", "broken", "good", "last")):
        leave(folder, f"{process // 3}", record(id, status=200), [id])
    settled = list[Any]()

    async def settle(owed: Any) -> None:
        settled.append(owed[0])
        if owed[0] == "broken":
            raise ValueError("of another version")

    ledger = Ledger(database)
    write = ledger.write

    async def refuses_one(one: RequestRecord) -> None:
        if one.request_id == "refused":
            raise TypeError("no row of mine")
        await write(one)

    ledger.write = refuses_one  # type: ignore[method-assign]
    assert await UnderWay(folder).recover(ledger, settle) == 3
    assert settled == ["refused", "broken", "good", "last"]
    assert {one.request_id for one in await ledger.list()} == {"broken", "good", "last"}
    assert "the request refused can't be recorded" in caplog.text
    assert "['broken']" in caplog.text
    assert not files(folder)


async def test_what_waits_for_a_database_is_settled_once(database: Database, folder: Path) -> None:
    for id in ("a", "b", "c"):
        leave(folder, "dead", record(id, status=200), [id])
    ledger, settled = Ledger(database), list[Any]()
    write = ledger.write

    async def settle(owed: Any) -> None:
        settled.append(owed[0])

    async def takes_one(one: RequestRecord) -> None:
        if one.request_id != "a":
            raise UnavailableError("away")
        await write(one)

    ledger.write = takes_one  # type: ignore[method-assign]
    assert await UnderWay(folder).recover(ledger, settle) == 1
    ledger.write = write  # type: ignore[method-assign]
    assert await UnderWay(folder).recover(ledger, settle) == 2
    assert settled == ["a", "b", "c"]
    assert len(await ledger.list()) == 3
    assert not files(folder)


def leave(folder: Path, process: str, of: RequestRecord, owed: list[Any]) -> None:
    """As a process would that was killed after this request had ended."""
    folder.mkdir(exist_ok=True)
    with (folder / f"{process}.jsonl").open("ab") as file:
        file.write(msgspec.json.encode(Line(of.request_id, of, True, owed)) + b"\n")
