"""Wootz's gateway beside LiteLLM's proxy: the same fake upstream, the same client, one after the other on one machine.

    python benchmarks/gateway.py --requests 2000 --chunks 50 --json bench-out/gateway.json

LiteLLM's proxy needs an environment of its own; it is left out, and named, where that is not there:

    python -m venv ~/.cache/wootz-bench/litellm
    ~/.cache/wootz-bench/litellm/bin/pip install 'litellm[proxy]' prometheus-client

Measured, each for whole and for streamed answers:

- requests per core: requests at `--concurrency`, divided by the *CPU seconds* that all processes of the gateway took
  meanwhile. Two gateways on a busy machine can be compared so; requests per second of wall time stand beside it.
- added latency: one request at a time, in turns to the upstream itself and through the gateway; the difference of the
  medians, and of the 99th percentiles. Streams come all at once there, which no model does; "at a pace" they come as
  models write them, a chunk each 10 ms. "first" is until a stream's first chunk is there. A whole answer "at a pace" is
  written as long as such a stream: a gateway that asks for it as a stream reads along meanwhile.
  It is measured in rounds, in each of them all gateways one after the other, and what is told is the median of the
  rounds, the lowest and the highest: the machines this is run on are shared, and others take a third of a core's speed
  away for seconds at a time.
  The client has its core as soon as it needs it (where the system lets it: `SCHED_FIFO`), as if it were elsewhere: with
  an upstream, a gateway and a client on two cores, it would wait until one of them pauses.
- forwarding: the upstream writes the time into each chunk it sends (the monotonic clock, which processes share), the
  client reads it off as it arrives; the median through the gateway less the median without it.
- memory: resident, of all processes of the gateway, before and after.

On in both: a key, a limit of requests per minute, Prometheus metrics, and a record of every request. Wootz's record is
a row in SQLite that is durable before the answer ends. LiteLLM's own needs PostgreSQL through an engine that is
downloaded from outside of the package registry, so here it appends a line to a file, which is less work, and its key is
the master key, which saves it the look-up.

For whole answers LiteLLM asks the upstream for whole ones; Wootz asks for a stream and folds it, unless the account
says otherwise. "wootz" is measured as it comes, "wootz-whole" with ``ask_whole = true``, as LiteLLM does it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvloop
from tqdm import tqdm

PEERS = Path.home() / ".cache" / "wootz-bench" / "litellm"
KEY = "sk-wootz-benchmark"

# --- the upstream --------------------------------------------------------------------------------------------------

USAGE = {"prompt_tokens": 20, "completion_tokens": 50, "total_tokens": 70}
HEAD = {"id": "chatcmpl-1", "created": 1, "model": "fake"}
NO_STAMP = "0" * 20
OK = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n"


class Upstream(asyncio.Protocol):
    """OpenAI's protocol as fast as Python can say it, so that its own time is little of what is measured: what does not
    change is written beforehand. Without a `pace` (seconds) all of a stream comes at once; with one a chunk at a time,
    and a whole answer when all would be there."""

    def __init__(self, num_chunks: int, pace: float) -> None:
        self.num_chunks, self.pace = num_chunks, pace
        text = "word " * num_chunks
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        whole = json.dumps({**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}).encode()
        self.whole = OK % b"application/json" + b"content-length: %d\r\n\r\n%s" % (len(whole), whole)
        self.stream_head = OK % b"text/event-stream" + b"transfer-encoding: chunked\r\n\r\n"
        piece = {"index": 0, "delta": {"content": f"{NO_STAMP} "}, "finish_reason": None}
        self.chunk = event({"choices": [piece]})
        self.last = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.last += event({"choices": [], "usage": USAGE}) + event("[DONE]") + b"0\r\n\r\n"
        self.burst = self.stream_head + num_chunks * self.chunk + self.last
        self.buffer = b""
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            length = int(lengths[0].split(b":")[1]) if lengths else 0
            if len(rest) < length:
                return
            body, self.buffer = rest[:length], rest[length:]
            is_stream = json.loads(body).get("stream") if body else False
            if self.pace:
                task = asyncio.ensure_future(self.at_a_pace() if is_stream else self.late())
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            else:
                self.transport.write(self.burst if is_stream else self.whole)

    async def at_a_pace(self) -> None:
        """Each chunk with the time."""
        self.transport.write(self.stream_head)
        began = time.monotonic()
        for number in range(self.num_chunks):
            await self.until(began + (number + 1) * self.pace)
            stamp = b"%0*d" % (len(NO_STAMP), time.monotonic_ns())
            self.transport.write(self.chunk.replace(NO_STAMP.encode(), stamp))
        self.transport.write(self.last)

    async def late(self) -> None:
        await self.until(time.monotonic() + self.num_chunks * self.pace)
        self.transport.write(self.whole)

    async def until(self, due: float) -> None:
        """By the clock: sleeps are late each by as much as the machine is asleep, and fifty of them add up."""
        while (left := due - time.monotonic()) > 0:  # noqa: ASYNC110 (it is the clock that is waited for)
            await asyncio.sleep(left if left > 0.002 else 0)


def event(said: dict[str, Any] | str) -> bytes:
    """As a chunk of HTTP."""
    data = said if isinstance(said, str) else json.dumps(HEAD | {"object": "chat.completion.chunk"} | said)
    text = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(text), text)


async def serve_upstream(port: int, num_chunks: int, pace: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Upstream(num_chunks, pace), "127.0.0.1", port)
    await server.serve_forever()


# --- the client ----------------------------------------------------------------------------------------------------


STAMP = re.compile(rb'"content": ?"(\d+) ')


class Client:
    """One kept connection, one request at a time, no more parsing than what is measured needs."""

    async def connect(self, port: int, *, stream: bool, model: str = "fake") -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(
            {"model": model, "messages": [{"role": "user", "content": "Say something long."}], "stream": stream}
        ).encode()
        self.request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer %s\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (KEY.encode(), len(body), body)
        )
        return self

    first = 0.0
    """Seconds until the last answer's first chunk."""

    async def ask(self, forwarding: list[float] | None = None) -> float:
        """Seconds until the last byte. Raises for anything but a whole good answer."""
        self.first = 0.0
        started = time.perf_counter()
        self.writer.write(self.request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:16]:
            raise RuntimeError(head.decode() + (await self.reader.read(2000)).decode(errors="replace"))
        low = head.lower()
        if b"content-length:" in low:
            length = int(low.partition(b"content-length:")[2].split(b"\r\n")[0])
            if b'"usage"' not in await self.reader.readexactly(length):
                raise RuntimeError("an answer without its usage")
            return time.perf_counter() - started
        end = b""
        while not end.endswith(b"\r\n0\r\n\r\n"):
            part = await self.reader.read(2**16)
            if not part:
                raise RuntimeError("a stream without its end")
            self.first = self.first or time.perf_counter() - started
            if forwarding is not None:
                now = time.monotonic_ns()
                forwarding += [(now - int(stamp)) / 1e9 for stamp in STAMP.findall(part)]
            end = (end + part)[-100:]
        if b"[DONE]" not in end:
            raise RuntimeError("a stream without its last word")
        return time.perf_counter() - started


async def rate(port: int, number: int, concurrency: int, *, stream: bool) -> float:
    """Seconds for all requests."""
    clients = [await Client().connect(port, stream=stream) for _ in range(concurrency)]
    left = iter(range(number))

    async def work(client: Client) -> None:
        for _ in left:
            await client.ask()

    started = time.perf_counter()
    await asyncio.gather(*map(work, clients))
    return time.perf_counter() - started


async def latencies(
    ports: list[int], number: int, *, stream: bool, model: str = "fake"
) -> list[tuple[list[float], list[float], list[float]]]:
    """Of each port: seconds a request, seconds from a chunk's sending to its arrival, and seconds until the first one.
    In turns. The first port is the upstream's own."""
    clients = [await Client().connect(port, stream=stream, model=model) for port in ports]
    measured: list[tuple[list[float], list[float], list[float]]] = [([], [], []) for _ in ports]
    with ahead_of_others():
        for _ in range(number):
            for client, (seconds, forwarding, first) in zip(clients, measured, strict=True):
                seconds.append(await client.ask(forwarding))
                first.append(client.first)
    return measured


@contextmanager
def ahead_of_others() -> Iterator[None]:
    """This process has a core whenever it wants one, where the system allows it."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (AttributeError, PermissionError):
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


# --- the gateways --------------------------------------------------------------------------------------------------


def wootz(folder: Path, upstreams: dict[str, int], port: int, *, ask_whole: bool = False) -> list[str]:
    config = f"[server]\nport = {port}\n"
    for name, upstream in upstreams.items():
        config += f'[providers.{name}]\nbase_url = "http://127.0.0.1:{upstream}/v1"\n'
        config += f"ask_whole = {json.dumps(ask_whole)}\n"
        config += f'[models.{name}]\nprovider = "{name}"\nprice = {{input = "0.15", output = "0.60"}}\n'
    (folder / "wootz.toml").write_text(config)
    return [str(Path(sys.executable).parent / "wootz"), "--home", str(folder), "up"]


def wootz_key(folder: Path) -> str:
    wootz_cli = str(Path(sys.executable).parent / "wootz")
    command = [wootz_cli, "--home", str(folder), "keys", "create", "benchmark", "--rpm", "100000000"]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout.strip()


LEDGER = """
import json
from litellm.integrations.custom_logger import CustomLogger


class Ledger(CustomLogger):
    def __init__(self):
        self.file = open("ledger.jsonl", "a", buffering=1)

    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        row = {"cost": kwargs.get("response_cost"), "model": kwargs.get("model"), "end": str(end_time)}
        self.file.write(json.dumps(row) + "\\n")


handler = Ledger()
"""


def litellm(folder: Path, upstreams: dict[str, int], port: int) -> list[str]:
    (folder / "bench_ledger.py").write_text(LEDGER)
    price = {"input_cost_per_token": 1.5e-7, "output_cost_per_token": 6e-7}
    models = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none",
                "rpm": 10**8,
            },
            "model_info": price,
        }
        for name, upstream in upstreams.items()
    ]  # fmt: skip
    config = {
        "model_list": models,
        "litellm_settings": {"callbacks": ["bench_ledger.handler", "prometheus"]},
        "general_settings": {"master_key": KEY},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    return [str(PEERS / "bin" / "litellm"), "--config", "config.yaml", "--port", str(port), "--host", "127.0.0.1"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def running(command: list[str], folder: Path, **env: str) -> Iterator[psutil.Process]:
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=os.environ | env)
        try:
            yield psutil.Process(child.pid)
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()


def tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def cpu_seconds(process: psutil.Process) -> float:
    return sum(times.user + times.system for one in tree(process) for times in [one.cpu_times()])


def rss(process: psutil.Process) -> int:
    return sum(one.memory_info().rss for one in tree(process))


def wait_until_up(url: str, process: psutil.Process, folder: Path) -> None:
    for _ in range(1200):
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    raise RuntimeError(f"it does not come up:\n{(folder / 'log').read_text()[-3000:]}")


@dataclass
class System:
    """A gateway that is up, and what was found of it: by part, row by row, each round's where there were several."""

    name: str
    port: int
    key: str
    process: psutil.Process
    found: dict[str, dict[str, list[float]]]

    def note(self, part: str, rows: dict[str, float]) -> None:
        for row, value in rows.items():
            self.found.setdefault(part, {}).setdefault(row, []).append(value)


@contextmanager
def up(name: str, upstreams: dict[str, int]) -> Iterator[System]:
    with tempfile.TemporaryDirectory() as text:
        folder, port, key = Path(text), free_port(), KEY
        ours = name.startswith("wootz")
        make = partial(wootz, ask_whole=name == "wootz-whole") if ours else litellm
        command = make(folder, upstreams, port)
        if ours:
            key = wootz_key(folder)
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "PYTHONPATH": str(folder)}
        with running(command, folder, **env) as process:
            health = "/readyz" if ours else "/health/liveliness"
            wait_until_up(f"http://127.0.0.1:{port}{health}", process, folder)
            yield System(name, port, key, process, {})


def measure(system: System, upstreams: dict[str, int], options: argparse.Namespace) -> None:
    """All but the rounds."""
    global KEY
    KEY, port, process = system.key, system.port, system.process
    for stream in (False, True):
        uvloop.run(rate(port, max(options.requests // 10, 20), options.concurrency, stream=stream))
    system.note("memory", {"before MB": rss(process) / 1e6})
    for stream, part in ((False, "whole"), (True, "streamed")):
        before = cpu_seconds(process)
        wall = uvloop.run(rate(port, options.requests, options.concurrency, stream=stream))
        cpu = cpu_seconds(process) - before
        system.note(part, {"requests per CPU second": options.requests / cpu})
        system.note(part, {"requests per second": options.requests / wall})
        paced = [upstreams["paced"], port]
        direct, through = uvloop.run(latencies(paced, options.paced_requests, stream=stream, model="paced"))
        system.note(part, differences("added, at a pace", direct[0], through[0]))
        if stream:
            system.note(part, differences("forwarding", direct[1], through[1]))
    system.note("memory", {"after MB": rss(process) / 1e6})


def one_round(system: System, upstream: int, number: int) -> None:
    global KEY
    KEY = system.key
    direct, through = uvloop.run(latencies([upstream, system.port], number, stream=False))
    system.note("whole", differences("added", direct[0], through[0]))
    direct, through = uvloop.run(latencies([upstream, system.port], number, stream=True))
    system.note("streamed", differences("added until the first", direct[2], through[2]))
    system.note("streamed", differences("added until the last", direct[0], through[0]))


def differences(row: str, direct: list[float], through: list[float]) -> dict[str, float]:
    return {
        f"{row} {label}": 1000 * (quantile(through, q) - quantile(direct, q))
        for label, q in (("p50 ms", 0.5), ("p99 ms", 0.99))
    }


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=20, help="of latencies; a quarter of them for LiteLLM")
    parser.add_argument("--latency-requests", type=int, default=150, help="of each kind in a round")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--chunks", type=int, default=50, help="of each streamed answer")
    parser.add_argument("--systems", default="wootz,wootz-whole,litellm")
    parser.add_argument("--paced-requests", type=int, default=20, help="streams of a chunk each 10 ms")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pace", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        return uvloop.run(serve_upstream(options.upstream, options.chunks, options.pace))
    upstreams = {"fake": free_port(), "paced": free_port()}
    with tempfile.TemporaryDirectory() as text, contextlib.ExitStack() as stack:
        for name, port in upstreams.items():
            folder = Path(text) / name
            folder.mkdir()
            pace = "0.01" if name == "paced" else "0"
            command = [
                sys.executable,
                __file__,
                "--upstream",
                str(port),
                "--chunks",
                str(options.chunks),
                "--pace",
                pace,
            ]
            stack.enter_context(running(command, folder))
        systems: list[System] = []
        for name in options.systems.split(","):
            if name == "litellm" and not (PEERS / "bin" / "litellm").exists():
                print(f"left out: litellm is not in {PEERS}")
                continue
            systems.append(stack.enter_context(up(name, upstreams)))
            measure(systems[-1], upstreams, options)
            print(name, "measured", flush=True)
        for number in tqdm(range(options.rounds), desc="rounds"):
            for system in systems:
                if system.name != "litellm" or number % 4 == 0:
                    one_round(system, upstreams["fake"], options.latency_requests)
    if options.json:
        write(options, systems)
    print(f"{options.requests} requests, {options.concurrency} at once, {options.chunks} chunks a stream\n")
    for part in ("whole", "streamed", "memory"):
        for row in systems[0].found[part]:
            print(f"{part:9} {row:30}", *(f"{system.name} {told(system.found[part][row])}" for system in systems))


def told(values: list[float]) -> str:
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.median(values):8.2f}{spread:18}"


def write(options: argparse.Namespace, systems: list[System]) -> None:
    options.json.parent.mkdir(parents=True, exist_ok=True)
    sizes = {name: value for name, value in vars(options).items() if isinstance(value, int)}
    about = {"sizes": sizes, "machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    results = {system.name: system.found for system in systems}
    options.json.write_text(json.dumps({"about": about, "results": results}, indent=2))


if __name__ == "__main__":
    main()
