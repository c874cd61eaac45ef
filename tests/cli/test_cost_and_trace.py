"""`wootz cost` and `wootz trace` on a ledger with something in it."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from fresh_database import fresh_sqlite
from kept_bodies import write_with_body
from redis_server import RedisServer
from typer.testing import CliRunner, Result

from wootz.cli import app
from wootz.core import Config
from wootz.gateway.caches.redis_store import RedisStore
from wootz.store import Database
from wootz.store.secrets import wrapper_of
from wootz.telemetry import AttemptRecord, Ledger, RequestRecord, SpanRecord, Timeline
from wootz.telemetry.signals import Signals

ESCAPE = "\x1b[31mred"


@pytest.fixture
def wootz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WOOTZ_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    asyncio.run(fill(tmp_path))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return run


async def fill(home: Path) -> None:
    database = Database(fresh_sqlite(home / "wootz.db"))
    ledger, now = Ledger(database), datetime.now(UTC)
    for n, (user, feature, priced) in enumerate(
        [("ann", "search", True), ("=cmd()", "chat", True), ("ann", "chat", False)]
    ):
        record = RequestRecord(
            request_id=f"r{n}", started_at=now, route="/v1/chat/completions", key_id=None, model="m", provider="x",
            stream=False, status=200, user=user, tags={"feature": feature}, prompt_tokens=100, completion_tokens=10,
            cost=Decimal("0.000001000001"), priced=priced, time_to_first_token=0.2, inter_token_latency=0.01,
            duration=1.0,
            timeline=Timeline(
                notes=(f"why {ESCAPE}",),
                spans=(SpanRecord(name="hold", start=0.0, end=0.001),),
                attempts=(AttemptRecord(deployment="m", provider="x", start=0.002, end=1.0, prompt_tokens=100),),
            ),
        )  # fmt: skip
        key = wrapper_of(Config(home=home), create=True)
        await write_with_body(ledger, record, f'{{"asked": "{ESCAPE}"}}', "[]", key)
    await ledger.close()
    await database.close()


def test_a_report_by_user_and_feature_is_exact_in_every_form(wootz):
    lines = json.loads(wootz("cost", "report", "--by", "user,feature", "--json").stdout)
    assert sum(Decimal(line["cost"]) for line in lines) == Decimal("0.000003000003")
    assert {(line["user"], line["feature"]) for line in lines} == {
        ("ann", "search"),
        ("=cmd()", "chat"),
        ("ann", "chat"),
    }
    rows = list(csv.DictReader(io.StringIO(wootz("cost", "report", "--by", "user,feature", "--csv").stdout)))
    assert [row["cost"] for row in rows] == ["0.000001000001"] * 3
    assert "'=cmd()" in {row["user"] for row in rows}  # A spreadsheet must not run it.
    shown = wootz("cost", "report", "--by", "user")
    assert "0.000002000002 + ?" in shown.stdout
    assert "1 requests used tokens whose price is not known" in shown.stderr


def test_a_resolved_conversation_costs_what_all_of_them_did(wootz, tmp_path: Path):
    assert "resolved" not in wootz("cost", "report").stdout

    async def told() -> None:
        database = Database(f"sqlite+aiosqlite:///{tmp_path / 'wootz.db'}")
        ledger, at = Ledger(database), datetime.now(UTC)
        for number in range(3):
            fields = {"model": "m", "provider": "x", "stream": False, "status": 200, "cost": Decimal("0.1")}
            talk = RequestRecord(
                request_id=f"c{number}",
                started_at=at,
                route="/",
                key_id=None,
                tags={"conversation": str(number)},
                **fields,
            )
            await ledger.write(talk)
        await Signals(database).note_all([{"kind": "resolved", "subject": subject} for subject in ("0", "2")])
        await ledger.close()
        await database.close()

    asyncio.run(told())
    (line,) = json.loads(wootz("cost", "report", "--by", "model", "--json").stdout)
    assert (line["conversations"], line["resolved"], line["cost_per_resolved"]) == (3, 2.0, "0.150000000000")
    (row,) = csv.DictReader(io.StringIO(wootz("cost", "report", "--by", "model", "--csv").stdout))
    assert (row["conversations_cost"], row["cost_per_resolved"]) == ("0.300000000000", "0.150000000000")
    shown = wootz("cost", "report", "--by", "model").stdout.split()
    assert shown[-4:] == ["m", "3", "2", "0.15"]


def test_a_request_is_explained(wootz):
    told = wootz("trace", "explain", "r0").stdout
    assert "tags  feature=search" in told
    assert "hold took 1.0 ms" in told
    assert "why ?[31mred" in told
    assert ESCAPE not in told
    assert json.loads(wootz("trace", "explain", "r0", "--json").stdout)["cost"] == "0.000001000001"
    assert '"asked": "?[31mred"' in wootz("trace", "explain", "r0", "--body").stdout
    unknown = wootz("trace", "explain", "r9")
    assert (unknown.exit_code != 0, unknown.stderr.startswith('error: no request "r9"')) == (True, True)


def test_stages_are_measured_against_their_budget(wootz, tmp_path):
    lines = {line["stage"]: line for line in json.loads(wootz("trace", "latency", "--json").stdout)}
    assert lines["hold"]["p50"] == pytest.approx(0.001)
    assert not lines["first_token"]["over"]
    (tmp_path / "wootz.toml").write_text("[telemetry.latency_budget]\nfirst_token = 150\n")
    shown = wootz("trace", "latency").stdout
    assert "over" in shown
    assert "An answer of 200 tokens: 2.20 s" in shown


def test_when_an_answer_is_there(wootz):
    shown = wootz("trace", "estimate").stdout
    assert "5.57 s for 200 tokens" in shown or "5.56 s for 200 tokens" in shown


def test_a_user_is_erased_after_asking(wootz):
    assert wootz("erase", "--user", "ann").exit_code == 1
    counts = json.loads(wootz("erase", "--user", "ann", "--yes", "--json").stdout)["counts"]
    assert (counts["bodies"], counts["records"]) == (2, 2)
    assert "Nothing of it was kept" in wootz("trace", "explain", "r0", "--body").stderr
    assert "user erased" in wootz("trace", "explain", "r0").stdout


def test_a_lost_key_leaves_the_rest_of_a_record(wootz, tmp_path: Path):
    (tmp_path / "secrets.key").unlink()
    told = wootz("trace", "explain", "r0", "--body")
    assert told.exit_code == 2
    assert "tags  feature=search" in told.stdout
    assert "the master key" in told.stderr
    whole = wootz("trace", "explain", "r0", "--body", "--json")
    assert whole.exit_code == 2
    assert json.loads(whole.stdout)["prompt_tokens"] == 100


def test_a_users_cached_answers_are_erased_too(wootz, tmp_path: Path):
    redis = RedisServer(tmp_path)
    config = f'[caches]\nredis = "{redis.url}"\n[caches.exact]\nenabled = true\n'
    (tmp_path / "wootz.toml").write_text(config)

    async def answers(put: bool) -> list[bool]:
        store = RedisStore(redis.url, 10**6)
        for number, user in enumerate(("ann", "=cmd()")):
            if put:
                await store.put(bytes([number]), b"x", 60, model="m", tenant="t", user=user)
        kept = [await store.get(bytes([number])) is not None for number in range(2)]
        await store.close()
        return kept

    try:
        assert asyncio.run(answers(put=True)) == [True, True]
        told = wootz("erase", "--user", "ann", "--yes", "--json").stdout
        assert json.loads(told)["counts"]["cached_answers"] == 1
        assert asyncio.run(answers(put=False)) == [False, True]
    finally:
        redis.kill()
    gone = wootz("erase", "--user", "=cmd()", "--yes")
    assert gone.exit_code != 0, "who erases must know that it was not done"
    assert "Redis is out of reach" in str(gone.exception) + gone.output
    (tmp_path / "wootz.toml").write_text("")
    again = json.loads(wootz("erase", "--user", "=cmd()", "--yes", "--json").stdout)
    assert again["counts"]["records"] == 1, "nothing of it was done halfway"


def test_what_if_prints_the_corrected_walk_through(wootz):
    arguments = ("--price", "3/15/0.30", "--cached", "3000", "--semantic", "0.3", "--cascade", "0.6:0.10/0.30")
    shown = wootz("cost", "whatif", *arguments).stdout
    for text in ("0.0195", "5,850.00", "3,420.00", "41.5%", "2,394.00", "1,073", "81.7%"):
        assert text in shown, text
    flattering = json.loads(wootz("cost", "whatif", *arguments, "--ignore-failed", "--json").stdout)
    assert round(Decimal(flattering[-1]["a_month"])) == 1027
    assert "0.0195" in wootz("cost", "whatif", "--price", "claude-sonnet-4-5").stdout


def test_host_or_buy(wootz):
    shown = wootz("cost", "host-or-buy", "--price", "1.4/5.6").stdout
    assert "They meet at 814,732,143 tokens a month." in shown
    assert (
        json.loads(wootz("cost", "host-or-buy", "--price", "0.01/0.02", "--json").stdout)["break_even_tokens_a_month"]
        is None
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("whatif", "--price", "a/b"),
        ("whatif", "--price", "no-such-model"),
        ("whatif", "--price", "3/15", "--semantic", "30"),
        ("whatif", "--price", "3/15", "--cached", "9999"),
        ("whatif", "--price", "3/15", "--cascade", "0.5"),
        ("host-or-buy", "--price", "0/0"),
        ("host-or-buy", "--price", "1/1", "--tps", "0"),
        ("host-or-buy", "--price", "1/1", "--gpu", "nan"),
    ],
)
def test_nonsense_is_refused(wootz, arguments):
    result = wootz("cost", *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
