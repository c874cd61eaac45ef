"""What is kept for users is encrypted: what lies on the disk, what opens and what doesn't, what older versions left."""

from __future__ import annotations

import asyncio
import io
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from batch_worker_process import make_gateway, prepare
from kept_bodies import on_the_disk
from serving import GatewayServer, ScriptedModel, until
from sqlalchemy import func, insert, select, text, update

from wootz.app.http import create_app
from wootz.core import Config, ConfigError, LanguageModel, NotFoundError
from wootz.core.media import MediaRequest, MediaTask
from wootz.gateway import Gateway, Key, KeyStore
from wootz.gateway.kept import kept_keys
from wootz.gateway.surfaces.batch_journal import Journal
from wootz.gateway.surfaces.batch_store import BatchStore, batches
from wootz.gateway.surfaces.batch_worker import BatchWorker
from wootz.gateway.surfaces.file_store import FileStore, StoredFile, files
from wootz.gateway.surfaces.kept_house import give_up, seal_plain, sweep
from wootz.gateway.surfaces.response_store import KEPT_SECONDS, ResponseStore, responses
from wootz.gateway.tasks import TaskRow
from wootz.store import Database
from wootz.store.sealed_file import EXTRA, MAGIC, PIECE
from wootz.store.secrets import wrapper_of
from wootz.store.secrets.data_keys import SLACK
from wootz.store.secrets.envelope import make_master_key
from wootz.telemetry import Ledger, Telemetry

CHAT = "/v1/chat/completions"


class Painter(LanguageModel):
    """Says what it was asked to paint."""

    name = "painter"

    async def submit(self, request: MediaRequest) -> MediaTask:
        output = {"actual_prompt": request.input["prompt"]}
        return MediaTask(id="t", status="SUCCEEDED", output=output, urls=(f"http://x.test/{request.input['prompt']}",))

    async def fetch(self, task_id: str) -> MediaTask:
        raise NotFoundError("it ends at once")

    async def cancel(self, task_id: str) -> None: ...

    async def download(self, url: str) -> bytes:
        return url.encode()


# --- on the disk, of all that users do ----------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GatewayServer]:
    settings: dict[str, Any] = {}
    if request.param == "postgresql":
        settings["database"] = {"url": request.getfixturevalue("postgres_url")}
    models = {"scripted": ScriptedModel("scripted"), "painter": Painter()}
    with GatewayServer(tmp_path / "home", lambda: dict(models), settings=settings) as server:
        yield server


@pytest.fixture
def sdk(house: GatewayServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{house.url}/v1", api_key=house.key, max_retries=0)


def test_no_byte_of_what_users_keep_lies_on_the_disk(
    house: GatewayServer, sdk: openai.OpenAI, request: pytest.FixtureRequest
) -> None:
    asked, said, control = (f"heron-{os.urandom(8).hex()}" for _ in range(3))
    model = house.gateway.models["scripted"]
    assert isinstance(model, ScriptedModel)
    model.script = [said]
    response = sdk.responses.create(model="scripted", input=asked, instructions=asked, metadata={"note": asked})
    lines = [
        {
            "custom_id": f"{asked} {number}", "method": "POST", "url": CHAT,
            "body": {"model": "scripted", "messages": [{"role": "user", "content": asked}]},
        }
        for number in range(3)
    ]  # fmt: skip
    content = "\n".join(map(json.dumps, lines)).encode()
    file = sdk.files.create(file=(f"{asked}.jsonl", content), purpose="batch")
    batch = sdk.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"note": asked})
    deadline = time.monotonic() + 60
    while (batch := sdk.batches.retrieve(batch.id)).status != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    wrong = sdk.files.create(file=("a.jsonl", json.dumps(lines[0] | {"url": asked}).encode()), purpose="batch")
    sdk.batches.create(input_file_id=wrong.id, endpoint=CHAT, completion_window="24h")
    assert asked in (sdk.images.generate(model="painter", prompt=asked).data or [])[0].url  # type: ignore[operator]
    house.call(_insert(house.database, control))

    assert sdk.responses.retrieve(response.id).output_text == said
    assert sdk.files.retrieve(file.id).filename == f"{asked}.jsonl"
    assert sdk.files.content(file.id).content == content
    assert batch.output_file_id is not None
    assert sdk.files.content(batch.output_file_id).text.count(said) == 3
    assert (batch.metadata or {}) == {"note": asked}
    assert {"note": asked} in [one.metadata for one in sdk.batches.list()]

    written = on_the_disk(house.database, request) + bytes_of(house.config.home)
    assert control.encode() in written
    assert asked.encode() not in written
    assert said.encode() not in written


def bytes_of(folder: Path) -> bytes:
    return b"".join(one.name.encode() + one.read_bytes() for one in folder.rglob("*") if one.is_file())


async def _insert(database: Database, control: str) -> None:
    """As older versions did."""
    row = {"id": "old", "owner": "", "created_at": 1, "input": control, "response": "{}"}
    async with database.session() as session:
        await session.execute(insert(responses), [row])


def test_ranges_of_a_file(house: GatewayServer, sdk: openai.OpenAI) -> None:
    content = b'{"a": "' + os.urandom(PIECE).hex().encode()[: 50 * 1024] + b'"}\n'
    content *= 5  # Some pieces.
    id = sdk.files.create(file=("a.jsonl", content), purpose="batch").id
    size = len(content)
    with httpx.Client(headers={"authorization": f"Bearer {house.key}"}, timeout=30) as http:

        def get(**headers: str) -> httpx.Response:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return http.get(f"{house.url}/v1/files/{id}/content", headers=named)

        whole = get()
        assert (whole.status_code, whole.content, whole.headers["accept-ranges"]) == (200, content, "bytes")
        assert whole.headers["content-disposition"] == 'attachment; filename="a.jsonl"'
        for asked, start, end in (
            ("bytes=0-0", 0, 1),
            (f"bytes={PIECE - 3}-{PIECE + 3}", PIECE - 3, PIECE + 4),
            (f"bytes={3 * PIECE}-", 3 * PIECE, size),
            ("bytes=-7", size - 7, size),
            (f"bytes=5-{10 * size}", 5, size),
            (f"bytes=-{10 * size}", 0, size),
        ):
            part = get(range=asked)
            assert (part.status_code, part.content) == (206, content[start:end]), asked
            assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        for asked in (f"bytes={size}-", "bytes=-0"):
            beyond = get(range=asked)
            assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
        for asked in ("bytes=5-3", "bytes=x-", "lines=1-2", "bytes=0-1,4-5"):
            assert get(range=asked).content == content
        etag = whole.headers["etag"]
        assert get(range="bytes=0-0", if_range=etag).status_code == 206
        assert get(range="bytes=0-0", if_range='"other"').content == content


def test_a_file_that_was_changed_is_one_clear_error(house: GatewayServer, sdk: openai.OpenAI) -> None:
    content = b'{"a": "' + b"x" * 50 * 1024 + b'"}\n'
    ids = [sdk.files.create(file=("a.jsonl", content * 5), purpose="batch").id for _ in range(2)]
    path, other = (house.config.home / "files" / id for id in ids)
    sealed = path.read_bytes()

    def refused() -> str:
        with pytest.raises(openai.InternalServerError) as error:
            sdk.files.content(ids[0])
        return error.value.message

    for changed in (sealed[: len(MAGIC) + PIECE + EXTRA], sealed[:-1], sealed + b"x", other.read_bytes()):
        path.write_bytes(changed)
        assert f"file {ids[0]} can't be opened: it is not what was stored under this id" in refused()
    path.write_bytes(content)
    assert "it is not encrypted, and was" in refused()
    middle = len(MAGIC) + 99
    path.write_bytes(sealed[:middle] + bytes([sealed[middle] ^ 1]) + sealed[middle + 1 :])
    with pytest.raises(openai.APIConnectionError):  # Nothing that was cut passes for the whole.
        sdk.files.content(ids[0])
    batch = sdk.batches.create(input_file_id=ids[0], endpoint=CHAT, completion_window="24h")
    deadline = time.monotonic() + 60
    while (batch := sdk.batches.retrieve(batch.id)).status != "failed":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [error.code for error in (batch.errors and batch.errors.data) or []] == ["file_damaged"]
    path.unlink()
    with pytest.raises(openai.NotFoundError, match="is gone"):
        sdk.files.content(ids[0])
    assert sdk.files.delete(ids[0]).deleted


# --- what opens ---------------------------------------------------------------------------------------------------


class Keeper:
    """Two keys, and one of each thing that is kept, of the first."""

    def __init__(self, database: Database, home: Path) -> None:
        self.database, self.config = database, Config.model_validate({"home": home})
        self.gateway = self.new_gateway()

    def new_gateway(self) -> Gateway:
        """As another process has it."""
        painter = Painter()
        return Gateway(self.config, {"painter": painter}, None, Telemetry(Ledger(self.database), {}))

    async def fill(self) -> None:
        keys = KeyStore(self.database)
        self.key, self.other = [(await keys.create(name))[0] for name in ("mine", "theirs")]
        self.task = await self.gateway.tasks.submit(
            None, MediaRequest(model="painter", input={"prompt": "text 1"}), request_id="r", route="/"
        )
        await self.gateway.tasks.wait(self.task.id)
        self.ids = {"files": await self.add("text 1"), "responses": "resp-1", "batches": "batch-1"}
        response = {"id": "resp-1", "created_at": int(time.time()), "previous_response_id": None, "output": "text 1"}
        await ResponseStore(self.database, self.gateway.kept).save(self.key, response, [{"text": "text 1"}], "ann")
        batch = {"id": "batch-1", "created_at": 1, "status": "completed", "metadata": "text 1"}
        await BatchStore(self.database, self.gateway.kept).create(self.key.id, batch)

    async def add(self, content: str, owner: Key | None = None) -> str:
        source = io.BytesIO(content.encode())
        file = await FileStore.of(self.gateway).add(
            (owner or self.key).id, source, filename=f"{content}.jsonl", purpose="batch", check=lambda _: None
        )
        return file.id

    async def read(self, what: str, key: Key | None = None, gateway: Gateway | None = None) -> str:
        key, gateway = key or self.key, gateway or self.gateway
        if what == "tasks":
            return str((await gateway.tasks.get(None, self.task.id)).output)
        if what == "responses":
            return str(await ResponseStore(self.database, gateway.kept).get(key, "resp-1"))
        if what == "batches":
            return str(await BatchStore(self.database, gateway.kept).get(key.id, "batch-1"))
        store = FileStore.of(gateway)
        file = await store.get(key.id, self.ids["files"])
        return f"{file.filename} {await self.content(store, file)}"

    @staticmethod
    async def content(store: FileStore, file: StoredFile) -> str:
        with await store.open(file) as opened:
            return opened.read().decode()


THINGS = ("responses", "files", "batches", "tasks")
TABLES = {"responses": responses, "files": files, "batches": batches, "tasks": TaskRow.metadata.tables["tasks"]}


@pytest.fixture
async def keeper(database: Database, tmp_path: Path) -> AsyncIterator[Keeper]:
    keeper = Keeper(database, tmp_path / "home")
    await keeper.fill()
    yield keeper
    await keeper.gateway.telemetry.close()


async def change(database: Database, what: str, **values: Any) -> None:
    async with database.session() as session:
        await session.execute(update(TABLES[what]).values(values))


@pytest.mark.parametrize("what", THINGS)
async def test_another_process_reads_it(keeper: Keeper, what: str) -> None:
    assert "text 1" in await keeper.read(what, gateway=keeper.new_gateway())


@pytest.mark.parametrize("what", ["responses", "files", "batches"])
async def test_a_row_that_is_made_anothers_does_not_open(keeper: Keeper, what: str) -> None:
    await change(keeper.database, what, owner=keeper.other.id)
    with pytest.raises(NotFoundError):
        await keeper.read(what)
    with pytest.raises(ConfigError, match=r"-\w+ can't be opened: it is not what was stored under this id"):
        await keeper.read(what, keeper.other)


@pytest.mark.parametrize("what", THINGS)
async def test_what_was_sealed_for_another_row_does_not_open(keeper: Keeper, what: str) -> None:
    row: dict[str, Any]
    async with keeper.database.session() as session:
        row = dict((await session.execute(select(TABLES[what]))).one()._mapping)
        await session.execute(insert(TABLES[what]), [row | {"id": "copied"}])
    moved = dict(row)
    for other in (name for name in THINGS if name != what):  # Nor for a row of another kind.
        async with keeper.database.session() as session:
            await session.execute(
                update(TABLES[other]).values(sealed=moved["sealed"], sealed_with=moved["sealed_with"])
            )
        with pytest.raises(ConfigError, match="not what was stored"):
            await keeper.read(other)
    if what == "responses":
        with pytest.raises(ConfigError, match="response copied can't be opened"):
            await ResponseStore(keeper.database, keeper.gateway.kept).get(keeper.key, "copied")
    await change(keeper.database, what, sealed=bytes([moved["sealed"][0] ^ 1]) + moved["sealed"][1:])
    with pytest.raises(ConfigError, match="not what was stored"):
        await keeper.read(what)


async def test_a_file_in_another_files_place_does_not_open(keeper: Keeper) -> None:
    store, mine = FileStore.of(keeper.gateway), keeper.ids["files"]
    twin = await keeper.add("text 2")
    store.path(mine).write_bytes(store.path(twin).read_bytes())
    with pytest.raises(ConfigError, match=f"file {mine} can't be opened: it is not what was stored"):
        await keeper.read("files")
    assert "text 2" in await keeper.content(store, await store.get(keeper.key.id, twin))


# --- keys ---------------------------------------------------------------------------------------------------------


async def test_another_master_key_is_one_clear_error_and_loses_nothing(keeper: Keeper) -> None:
    key, away = keeper.config.home / "secrets.key", keeper.config.home / "away"
    key.rename(away)
    make_master_key(key)
    wrong = keeper.new_gateway()
    with pytest.raises(ConfigError) as refused:
        await wrong.kept.check()
    assert str(refused.value).startswith(
        "what is kept for users can't be opened: the master key does not open it; give the master key that it was"
    )
    for what in THINGS:
        with pytest.raises(ConfigError, match="can't be opened: the master key does not open it; give the key"):
            await keeper.read(what, gateway=wrong)
    for what in ("files", "batches"):
        store = FileStore.of(wrong) if what == "files" else BatchStore(keeper.database, wrong.kept)
        with pytest.raises(ConfigError, match="does not open it"):
            await store.list(keeper.key.id, limit=9)
    await sweep(wrong)
    away.replace(key)
    right = keeper.new_gateway()
    await right.kept.check()
    for what in THINGS:
        assert "text 1" in await keeper.read(what, gateway=right)


async def test_a_worker_without_the_key_leaves_batches_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, batch = await prepare(tmp_path, num_lines=2)
    key, away = tmp_path / "secrets.key", tmp_path / "away"
    key.rename(away)
    make_master_key(key)
    worker = asyncio.create_task(BatchWorker(make_gateway(tmp_path), lease=0.2, poll=0.05).run())
    await until(lambda: asyncio.to_thread(lambda: "batch batch_1 can't be opened: the master key" in caplog.text))
    worker.cancel()
    away.replace(key)
    second = BatchWorker(make_gateway(tmp_path), lease=0.5, poll=0.05)
    worker = asyncio.create_task(second.run())

    async def is_completed() -> bool:
        return (await second.batches.get("", batch["id"]))["status"] == "completed"

    await until(is_completed)
    worker.cancel()
    for one in (gateway, second.gateway):
        await one.telemetry.close()
        await one.database.close()


async def test_what_no_key_opens_is_given_up_and_all_else_stays(keeper: Keeper) -> None:
    key = keeper.config.home / "secrets.key"
    key.unlink()
    make_master_key(key)
    wrong = keeper.new_gateway()
    new = await ResponseStore(keeper.database, wrong.kept).save(
        keeper.key, {"id": "resp-2", "created_at": int(time.time()), "previous_response_id": None}, [], None
    )
    assert new is None
    (keeper.config.home / "batches" / "batch-1").mkdir(parents=True)
    counts = await give_up(keeper.database, keeper.config, wrapper_of(keeper.config))
    assert counts == {"responses": 1, "files": 1, "batches": 1, "tasks": 1}
    await wrong.kept.check()
    await ResponseStore(keeper.database, wrong.kept).get(keeper.key, "resp-2")
    with pytest.raises(NotFoundError):
        await keeper.read("files", gateway=wrong)
    assert not [*(keeper.config.home / "files").iterdir(), *(keeper.config.home / "batches").iterdir()]

    def away() -> Any:
        raise ConfigError("Vault can't be reached")

    with pytest.raises(ConfigError, match="reached"):  # Then it is not known what is lost.
        await give_up(keeper.database, keeper.config, away)
    await ResponseStore(keeper.database, wrong.kept).get(keeper.key, "resp-2")


async def test_a_key_goes_with_the_last_that_it_sealed(keeper: Keeper) -> None:
    database, gateway = keeper.database, keeper.gateway

    async def keys() -> int:
        async with database.session() as session:
            return await session.scalar(select(func.count()).select_from(kept_keys)) or 0

    async with database.session() as session:
        await session.execute(update(kept_keys).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    for what in THINGS:
        await sweep(gateway)
        assert await keys() == 1
        async with database.session() as session:
            await session.execute(TABLES[what].delete())
    await sweep(gateway)
    assert await keys() == 0
    fresh = keeper.new_gateway()
    assert (await fresh.kept.key()).expires_at > datetime.now(UTC) + SLACK
    await sweep(fresh)
    assert await keys() == 1  # What it may be sealing just now has no row yet.


async def test_old_responses_and_files_go(keeper: Keeper) -> None:
    await change(keeper.database, "responses", created_at=int(time.time()) - KEPT_SECONDS - 1)
    await change(keeper.database, "files", expires_at=int(time.time()) - 1)
    await sweep(keeper.gateway)
    for what in ("responses", "files"):
        with pytest.raises(NotFoundError):
            await keeper.read(what)
    assert not [*(keeper.config.home / "files").iterdir()]


# --- of before ----------------------------------------------------------------------------------------------------


async def of_before(keeper: Keeper, canary: str) -> None:
    """The keeper's things as an older version would have left them."""
    none: dict[str, Any] = {"sealed": None, "sealed_with": None}
    said = json.dumps({"id": "resp-1", "output": canary})
    await change(keeper.database, "responses", response=said, input=json.dumps([canary]), **none)
    await change(
        keeper.database, "batches", batch=json.dumps({"id": "batch-1", "status": "completed", "x": canary}), **none
    )
    await change(keeper.database, "tasks", output={"said": canary}, urls=[canary], **none)
    await change(keeper.database, "files", filename=canary, **none)
    (keeper.config.home / "files" / keeper.ids["files"]).write_text(canary)
    async with keeper.database.session() as session:
        await session.execute(kept_keys.delete())


async def test_things_of_before_are_readable_and_then_encrypted(keeper: Keeper, request: pytest.FixtureRequest) -> None:
    canary = f"heron-{os.urandom(8).hex()}"
    await of_before(keeper, canary)
    gateway = keeper.new_gateway()
    before = {what: await keeper.read(what, gateway=gateway) for what in THINGS}
    assert all(canary in text for text in before.values())
    assert [await seal_plain(gateway) for _ in range(2)] == [4, 0]
    for reader in (gateway, keeper.new_gateway()):
        assert {what: await keeper.read(what, gateway=reader) for what in THINGS} == before
    assert canary.encode() not in (keeper.config.home / "files" / keeper.ids["files"]).read_bytes()
    async with keeper.database.session() as session:
        for what in THINGS:
            assert canary not in str((await session.execute(select(TABLES[what]))).all())
    if keeper.database.dialect == "sqlite":  # PostgreSQL's log and free space keep it until they are recycled.
        assert canary.encode() not in on_the_disk(keeper.database, request)


async def test_a_server_encrypts_what_is_of_before_when_it_starts(tmp_path: Path) -> None:
    config = Config.model_validate({"home": tmp_path, "models": {}})
    database = Database(config.database_url)
    await database.migrate()
    row = {
        "id": "resp-1",
        "owner": "",
        "created_at": int(time.time()),
        "input": '["text"]',
        "response": '{"output": 1}',
    }
    async with database.session() as session:
        await session.execute(insert(responses), [row])

    async def is_sealed() -> bool:
        async with database.session() as session:
            return await session.scalar(select(responses.c.sealed_with)) is not None

    app = create_app(config, {})
    async with app.router.lifespan_context(app):
        await until(is_sealed)
        store = ResponseStore(database, app.state.gateway.kept)
        assert await store.get(None, "resp-1") == ({"output": 1}, ["text"])
    await database.close()


async def test_two_replicas_may_encrypt_a_file_of_before_at_once(keeper: Keeper) -> None:
    """Each with a key of its own day; and one may be killed between the file and its row."""
    content = "text of before " * PIECE
    await of_before(keeper, content)
    await change(keeper.database, "files", filename="mine")
    one, two = keeper.new_gateway(), keeper.new_gateway()
    await asyncio.gather(one.kept.key(), two.kept.key())
    await asyncio.gather(seal_plain(one), seal_plain(two))
    assert await keeper.read("files", gateway=keeper.new_gateway()) == f"mine {content}"

    async with keeper.database.session() as session:  # As if killed before the row was written.
        await session.execute(update(files).values(sealed=None, filename="mine"))
    assert await keeper.read("files", gateway=keeper.new_gateway()) == f"mine {content}"
    assert await seal_plain(keeper.new_gateway()) == 1
    assert await keeper.read("files", gateway=keeper.new_gateway()) == f"mine {content}"


async def test_a_file_that_is_deleted_while_it_is_encrypted_does_not_come_back(keeper: Keeper) -> None:
    await of_before(keeper, "text")
    store, key = FileStore.of(keeper.gateway), await keeper.new_gateway().kept.key()
    await change(keeper.database, "files", sealed_with=key.id)
    file = await store.get(keeper.key.id, keeper.ids["files"])
    async with keeper.database.session() as session:
        await session.execute(files.delete())
    await store.seal(file)
    assert not store.path(file.id).exists()


async def test_a_batch_that_an_older_version_began_is_gone_on_with(tmp_path: Path) -> None:
    gateway, batch = await prepare(tmp_path, num_lines=10)
    input_id, canary = batch["input_file_id"], "of-an-older-version"
    store = FileStore.of(gateway)
    with await store.open(await store.get("", input_id)) as file:
        plain = file.read()
    store.path(input_id).write_bytes(plain)
    state = {name: value for name, value in batch.items() if name != "owner"} | {"status": "in_progress"}
    none: dict[str, Any] = {"sealed": None, "sealed_with": None}
    await change(gateway.database, "files", filename="a", **none)
    await change(gateway.database, "batches", batch=json.dumps(state), status="in_progress", **none)
    folder = tmp_path / "batches" / batch["id"]
    folder.mkdir(parents=True)
    body = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}, "note": canary}
    done = [
        {"id": "x", "custom_id": f"line {number}", "response": {"status_code": 200, "body": body}, "error": None}
        for number in range(3)
    ]
    (folder / "output.jsonl").write_text("".join(json.dumps(line) + "\n" for line in done) + '{"custom_id": "li')
    worker = BatchWorker(gateway, poll=0.05)
    working = asyncio.create_task(worker.run())

    async def is_completed() -> Any:
        shown = await worker.batches.get("", batch["id"])
        return shown if shown["status"] == "completed" else None

    shown = await until(is_completed)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    with await store.open(await store.get("", shown["output_file_id"])) as file:
        lines = [json.loads(line) for line in file]
    assert lines[:3] == done
    assert {line["custom_id"] for line in lines} == {f"line {number}" for number in range(10)}
    assert shown["usage"]["input_tokens"] == 3 * 5 + 7
    assert await seal_plain(gateway) == 1  # Its input.
    assert canary.encode() not in bytes_of(tmp_path)
    await gateway.telemetry.close()
    await gateway.database.close()


async def test_a_journal_that_was_changed_is_asked_again_from_there(tmp_path: Path) -> None:
    gateway, batch = await prepare(tmp_path, num_lines=3)
    key = await gateway.kept.key()
    mine, other = (Journal(tmp_path / "j", key, context) for context in (b"mine", b"other"))
    for number in range(3):
        mine.append("output", {"custom_id": f"line {number}"})
    mine.close()
    path, whole = mine.path("output"), mine.path("output").read_bytes()
    assert mine.read()["output"] == {"line 0", "line 1", "line 2"}
    assert [json.loads(line)["custom_id"] for line in mine.lines("output")] == ["line 0", "line 1", "line 2"]
    size = len(whole) // 3
    for changed, left in (
        (whole[:-1], 2),
        (whole + bytes(500), 3),  # What a power cut may leave.
        (whole + b"\xff\xff\xff\xff" + bytes(40), 3),
        (whole[: size + 9] + bytes([whole[size + 9] ^ 1]) + whole[size + 10 :], 1),
    ):
        path.write_bytes(changed)
        with pytest.raises(ConfigError, match="was changed at its byte"):
            list(mine.lines("output"))
        assert mine.read()["output"] == {f"line {number}" for number in range(left)}
        assert path.stat().st_size == left * size
    path.write_bytes(whole)
    assert other.read()["output"] == set()
    await gateway.telemetry.close()
    await gateway.database.close()
    assert batch["id"]


async def test_a_row_that_does_not_open_keeps_no_other_batch(tmp_path: Path) -> None:
    gateway, _ = await prepare(tmp_path, num_lines=1)
    await change(gateway.database, "batches", sealed=os.urandom(100))
    store = BatchStore(gateway.database, gateway.kept)
    await store.create("", {"id": "batch_2", "created_at": 2, "status": "validating"})
    with pytest.raises(ConfigError, match="batch batch_1 can't be opened"):
        await store.claim("me", 15)
    claim = await store.claim("me", 15)
    assert claim is not None
    assert claim.batch["id"] == "batch_2"
    assert await store.claim("me", 15) is None
    async with gateway.database.session() as session:
        assert (await session.execute(text("select count(*) from batches"))).scalar() == 2
    await gateway.telemetry.close()
    await gateway.database.close()
