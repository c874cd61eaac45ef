"""``/v1/files`` and ``/v1/batches`` with the official SDK as the client, and a worker that is killed in the middle."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import sys
import time
from collections import Counter
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from batch_worker_process import SlowModel, prepare
from serving import HANG, GatewayServer, ScriptedModel, until

from wootz.core import BadRequestError, RateLimitError
from wootz.core.wire import ChatRequest
from wootz.gateway.surfaces.batch_worker import BatchWorker

CHAT = "/v1/chat/completions"


@pytest.fixture
def sdk(server: GatewayServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)


def line(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    ask = {"model": "scripted", "messages": [{"role": "user", "content": custom_id}]}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": ask | body}


def upload(sdk: openai.OpenAI, lines: list[dict[str, Any]]) -> str:
    content = "\n".join(map(json.dumps, lines)).encode()
    return sdk.files.create(file=("work.jsonl", content), purpose="batch").id


def run(sdk: openai.OpenAI, lines: list[dict[str, Any]], endpoint: Any = CHAT) -> Any:
    batch = sdk.batches.create(input_file_id=upload(sdk, lines), endpoint=endpoint, completion_window="24h")
    return wait(sdk, batch.id)


def wait(sdk: openai.OpenAI, id: str) -> Any:
    deadline = time.monotonic() + 60
    while (batch := sdk.batches.retrieve(id)).status not in ("completed", "failed", "cancelled", "expired"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return batch


def results(sdk: openai.OpenAI, file_id: str) -> dict[str, Any]:
    lines = [json.loads(text) for text in sdk.files.content(file_id).text.splitlines()]
    assert len({one["custom_id"] for one in lines}) == len(lines)
    return {one["custom_id"]: one for one in lines}


# --- batches ------------------------------------------------------------------------------------------------------


def test_a_batch_answers_its_lines_and_tells_the_failures_apart(
    sdk: openai.OpenAI, server: GatewayServer, model: ScriptedModel
) -> None:
    batch = run(sdk, [line("a"), line("b"), line("c", model="gone"), line("d", temperature=9)])
    assert (batch.status, batch.errors) == ("completed", None)
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (4, 2, 2)

    good = results(sdk, batch.output_file_id)
    assert good.keys() == {"a", "b"}
    assert good["a"]["response"]["body"]["choices"][0]["message"]["content"] == "Hello, wörld"
    bad = results(sdk, batch.error_file_id)
    assert {id: one["response"]["status_code"] for id, one in bad.items()} == {"c": 404, "d": 400}
    assert bad["d"]["response"]["body"]["error"]["param"] == "temperature"

    record = server.call(server.ledger.get(good["a"]["response"]["request_id"]))
    assert (record.route, record.status, record.completion_tokens) == (CHAT, 200, 3)
    assert {request.journey.lane for request in model.asked} == {"batch"}
    assert {request.urgency for request in model.asked} == {100}


def test_batches_of_completions_and_responses(sdk: openai.OpenAI) -> None:
    batch = run(sdk, [line("a", "/v1/completions", prompt="Say")], "/v1/completions")
    assert results(sdk, batch.output_file_id)["a"]["response"]["body"]["choices"][0]["text"] == "Hello, wörld"
    ask = {"custom_id": "r", "method": "POST", "url": "/v1/responses", "body": {"model": "scripted", "input": "hi"}}
    batch = run(sdk, [ask], "/v1/responses")
    body = results(sdk, batch.output_file_id)["r"]["response"]["body"]
    assert body["output"][0]["content"][0]["text"] == "Hello, wörld"
    assert sdk.responses.retrieve(body["id"]).output_text == "Hello, wörld"


def test_a_rate_limit_is_waited_for(sdk: openai.OpenAI, server: GatewayServer, model: ScriptedModel) -> None:
    model.script = ["Hi", RateLimitError("busy", retry_after=0.1)]

    def recover() -> None:
        while not model.asked:
            time.sleep(0.01)
        model.script = ["Hi"]

    batch = sdk.batches.create(input_file_id=upload(sdk, [line("a")]), endpoint=CHAT, completion_window="24h")
    recover()
    done = wait(sdk, batch.id)
    (answer,) = results(sdk, done.output_file_id).values()
    assert answer["response"]["request_id"] == f"{batch.id}-1-2"
    assert server.call(server.ledger.get(f"{batch.id}-1")).status == 429


def test_a_cancelled_batch_gives_out_what_was_answered(sdk: openai.OpenAI, model: ScriptedModel) -> None:
    model.script = [RateLimitError("busy", retry_after=60)]
    batch = sdk.batches.create(input_file_id=upload(sdk, [line("a")]), endpoint=CHAT, completion_window="24h")
    while not model.asked:
        time.sleep(0.01)
    assert sdk.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = wait(sdk, batch.id)
    assert (done.status, done.output_file_id, done.request_counts.completed) == ("cancelled", None, 0)
    with pytest.raises(openai.BadRequestError, match="completed already"):
        sdk.batches.cancel(run(sdk, [line("b", model="gone")]).id)


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([line("a"), line("a")], "duplicate_custom_id"),
        ([line("a"), line("b", "/v1/embeddings")], "invalid_url"),
        ([line("a", stream=True)], "invalid_body"),
        ([{"method": "POST"}], "missing_custom_id"),
    ],
)
def test_a_malformed_batch_fails_as_a_whole_and_says_where(sdk: openai.OpenAI, lines: list, code: str) -> None:
    batch = run(sdk, lines)
    assert batch.status == "failed"
    (error,) = batch.errors.data
    assert (error.code, error.line) == (code, len(lines))


def test_each_key_has_its_own_files_and_batches(sdk: openai.OpenAI, server: GatewayServer) -> None:
    mine = run(sdk, [line("a")])
    stranger = sdk.with_options(api_key=server.admin_key)
    for attempt in (
        lambda: stranger.files.retrieve(mine.input_file_id),
        lambda: stranger.files.content(mine.output_file_id),
        lambda: stranger.files.delete(mine.output_file_id),
        lambda: stranger.batches.retrieve(mine.id),
        lambda: stranger.batches.cancel(mine.id),
        lambda: stranger.batches.create(input_file_id=mine.input_file_id, endpoint=CHAT, completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            attempt()
    assert mine.id not in {batch.id for batch in stranger.batches.list()}
    assert mine.output_file_id not in {file.id for file in stranger.files.list()}


def test_lists_have_pages(sdk: openai.OpenAI) -> None:
    files = [upload(sdk, [line("a")]) for _ in range(3)]
    batches = [sdk.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h").id for file in files]
    first = sdk.batches.list(limit=2)
    assert len(first.data) == 2
    assert first.has_more
    assert set(batches) <= {batch.id for batch in first}  # The SDK turns the pages.
    ids = [file.id for file in sdk.files.list(limit=2, order="asc")]
    assert len(ids) == len(set(ids))
    assert set(files) <= set(ids)


# --- files --------------------------------------------------------------------------------------------------------


def test_a_file_comes_back_as_it_went_and_can_be_deleted(sdk: openai.OpenAI, server: GatewayServer) -> None:
    id = upload(sdk, [line("a")])
    assert (sdk.files.retrieve(id).filename, sdk.files.retrieve(id).purpose) == ("work.jsonl", "batch")
    assert json.loads(sdk.files.content(id).text) == line("a")
    assert sdk.files.delete(id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.content(id)
    assert not (server.config.home / "files" / id).exists()


@pytest.mark.parametrize("name", ["../../wootz.db", "a/b", "..", "a:b", "a\x00b"])
def test_a_name_that_is_a_path_is_refused(http: httpx.Client, server: GatewayServer, name: str) -> None:
    quoted = name.encode("unicode_escape") if "\x00" in name else name.encode()
    body = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
    body += b'Content-Disposition: form-data; name="file"; filename="%s"\r\n\r\n{}\r\n--x--\r\n' % quoted
    answer = http.post("/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400, answer.text
    for path in ("../wootz.db", "..%2Fwootz.db", "%2e%2e%2fwootz.db", "file-1%00"):
        assert http.get(f"/v1/files/{path}/content").status_code == 404


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"\n \n", "empty_file"),
        (b"[1]\n", "invalid_json_line"),
        (b'{"a": 1, "a": 2}\n', "invalid_json_line"),
        (b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "invalid_json_line"),
        (b"\x1f\x8b\x08\x00" + b"\x00" * 50, "invalid_json_line"),
        (b'{"a": "' + b"x" * 70_000 + b'"}', "line_too_long"),
        (b"{}\n" * 50_001, "too_many_lines"),
    ],
)
def test_what_is_no_file_of_requests_is_refused(http: httpx.Client, content: bytes, code: str) -> None:
    answer = http.post("/v1/files", files={"file": ("a.jsonl", content)}, data={"purpose": "batch"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_other_purposes_and_too_much_are_refused(http: httpx.Client, server: GatewayServer) -> None:
    answer = http.post("/v1/files", files={"file": ("a", b"{}")}, data={"purpose": "fine-tune"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "purpose")
    connection = HTTPConnection(server.url.removeprefix("http://"))
    connection.putrequest("POST", "/v1/files")
    for name, value in {"authorization": f"Bearer {server.key}", "content-length": str(2**40)}.items():
        connection.putheader(name, value)
    connection.putheader("content-type", "multipart/form-data; boundary=x")
    connection.endheaders()
    assert connection.getresponse().status == 413  # Of what was declared, nothing is waited for.


# --- killed -------------------------------------------------------------------------------------------------------


def num_done(journal: Path) -> int:
    """Its whole lines: each has its length before it."""
    data, number = journal.read_bytes() if journal.exists() else b"", 0
    while data and len(data) >= (length := 4 + int.from_bytes(data[:4], "big")):
        data, number = data[length:], number + 1
    return number


async def output_of(worker: BatchWorker, batch: dict[str, Any], shown: dict[str, Any]) -> list[dict[str, Any]]:
    with await worker.files.open(await worker.files.get(batch["owner"], shown["output_file_id"])) as file:
        return [json.loads(text) for text in file]


async def test_a_killed_worker_leaves_each_line_answered_once(tmp_path: Path) -> None:
    gateway, batch = await prepare(tmp_path, num_lines=30)
    script = Path(__file__).parent / "batch_worker_process.py"
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), str(tmp_path))
    journal = tmp_path / "batches" / batch["id"] / "output.sealed"
    await until(lambda: asyncio.to_thread(lambda: num_done(journal) >= 5))
    process.kill()
    await process.wait()
    assert num_done(journal) < 30
    with journal.open("ab") as file:
        file.write(b"\0\0\1\0cut")  # It was killed in the middle of a line, too.

    model = gateway.models["slow"]
    assert isinstance(model, SlowModel)
    worker = BatchWorker(gateway, lease=0.5, poll=0.05)
    working = asyncio.create_task(worker.run())

    async def is_completed() -> Any:
        shown = await worker.batches.get(batch["owner"], batch["id"])
        return shown if shown["status"] == "completed" else None

    shown = await until(is_completed)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)

    lines = await output_of(worker, batch, shown)
    assert Counter(one["custom_id"] for one in lines) == Counter(f"line {n}" for n in range(30))
    ledger = await gateway.telemetry.ledger.statuses(batch["id"])
    assert set(ledger) == {one["response"]["request_id"] for one in lines}
    assert set(ledger.values()) == {200}
    assert shown["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
    assert not journal.parent.exists()
    await gateway.telemetry.close()
    await gateway.database.close()


async def stop_between_transactions(process: asyncio.subprocess.Process, database: Path) -> None:
    """SQLite has one lock for who writes: a process that is stopped while it holds it stops everybody."""
    with closing(sqlite3.connect(database, timeout=0.1, isolation_level=None)) as connection:
        while True:
            process.send_signal(signal.SIGSTOP)
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                await asyncio.sleep(0.01)
            else:
                connection.execute("ROLLBACK")
                return


async def test_a_worker_that_stood_still_writes_nothing_into_the_batch_of_who_took_over(tmp_path: Path) -> None:
    """Its claim ran out while it was stopped; when it goes on, answers of its own are under way, and its journal has
    become the user's output."""
    gateway, batch = await prepare(tmp_path, num_lines=30)
    script = Path(__file__).parent / "batch_worker_process.py"
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), str(tmp_path))
    journal = tmp_path / "batches" / batch["id"] / "output.sealed"
    await until(lambda: asyncio.to_thread(lambda: num_done(journal) >= 5))
    await stop_between_transactions(process, tmp_path / "wootz.db")
    worker = BatchWorker(gateway, lease=0.5, poll=0.05)
    working = asyncio.create_task(worker.run())

    async def is_completed() -> Any:
        shown = await worker.batches.get(batch["owner"], batch["id"])
        return shown if shown["status"] == "completed" else None

    shown = await until(is_completed)
    process.send_signal(signal.SIGCONT)
    await asyncio.sleep(0.5)
    process.kill()
    await process.wait()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    lines = [one["custom_id"] for one in await output_of(worker, batch, shown)]
    assert Counter(lines) == Counter(f"line {n}" for n in range(30))
    await gateway.telemetry.close()
    await gateway.database.close()


async def test_a_worker_that_ends_in_order_gives_its_batch_back(tmp_path: Path) -> None:
    gateway, batch = await prepare(tmp_path, num_lines=4)
    hanging = ScriptedModel("slow", ["Hm", HANG])
    gateway.models["slow"] = hanging
    first = asyncio.create_task(BatchWorker(gateway, poll=0.05).run())
    await until(lambda: asyncio.to_thread(hanging.hanging.is_set))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert hanging.cancelled.is_set()

    gateway.models["slow"] = ScriptedModel("slow")
    second = BatchWorker(gateway, poll=0.05)  # Its claim is free at once, though a lease is 15 seconds.
    working = asyncio.create_task(second.run())

    async def is_completed() -> Any:
        shown = await second.batches.get(batch["owner"], batch["id"])
        return shown if shown["status"] == "completed" else None

    shown = await until(is_completed)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert shown["request_counts"]["completed"] == 4
    statuses = await gateway.telemetry.ledger.statuses(batch["id"])
    assert Counter(statuses.values())[200] == 4  # Beside those that were cut, which are recorded too.
    await gateway.telemetry.close()
    await gateway.database.close()


def test_a_line_of_the_wrong_shape_is_named() -> None:
    from wootz.gateway.surfaces.batch_lines import request_of

    with pytest.raises(BadRequestError) as wrong:
        request_of(CHAT, {"model": "m", "messages": [{"role": "king", "content": "x"}]})
    assert wrong.value.param == "messages[0].role"
    assert isinstance(request_of(CHAT, line("a")["body"]), ChatRequest)
