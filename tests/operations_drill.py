"""The drill behind docs/operations: each incident is made to happen on a real gateway, and what was typed is kept.

    .venv/bin/python tests/operations_drill.py            (all; writes the outputs into the pages)
    .venv/bin/python tests/operations_drill.py errors     (one)

`wootz up` runs as it would, with two endpoints of our own in front of it that fail as they are told, and a week of
ordinary traffic in its ledger. Windows and sample counts are shorter than the ones that ship, so that a drill takes
seconds; what is measured, compared, told and done is the same. Pages are Markdown with a block for each drill:
what stands between ``<!-- drill -->`` and ``<!-- end of drill -->`` is written by this script.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "telemetry")]

import alert_traffic  # noqa: E402
from alert_traffic import Traffic  # noqa: E402

from wootz.gateway import KeyStore  # noqa: E402
from wootz.store import Database  # noqa: E402

PAGES = ROOT / "docs" / "operations"
WOOTZ = str(Path(sys.executable).with_name("wootz"))
KEY = "drill-" + "0" * 32
SECRET = "drill-secret-of-the-pager-0000"
NOW = datetime.now(UTC)
SHORT = {"window": "1m", "hold": "0s", "quiet": "5s", "every": "1s", "least": 5}


class FarEnd:
    """Two endpoints, ``/a/v1`` and ``/b/v1``, and a pager at ``/pager``. ``behaves`` says how each answers."""

    def __init__(self) -> None:
        self.behaves: dict[str, dict[str, Any]] = {"a": {}, "b": {}}
        self.paged: list[dict[str, Any]] = []
        app = FastAPI()
        app.post("/{end}/v1/chat/completions")(self.chat)
        app.post("/pager")(self.page)
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        threading.Thread(target=self._server.run, daemon=True).start()
        while not self._server.started:
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    async def page(self, request: Request) -> Response:
        self.paged.append(await request.json())
        return Response()

    async def chat(self, end: str, request: Request) -> Response:
        how, asked = self.behaves[end], await request.json()
        if status := how.get("status"):
            headers = {"retry-after": "1"} if status == 429 else {}
            return JSONResponse({"error": {"message": "as the drill wants it"}}, status, headers)
        await asyncio.sleep(how.get("wait", 0))
        usage = {
            "prompt_tokens": how.get("prompt", 1000), "completion_tokens": how.get("completion", 20),
            "total_tokens": 1020, "prompt_tokens_details": {"cached_tokens": how.get("cached", 600)},
        }  # fmt: skip
        text = how.get("text", "Steel is iron with a little carbon.")
        head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": asked["model"]}

        def events():
            yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]}
            yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            yield {"choices": [], "usage": usage}

        def lines():
            for event in events():
                yield f"data: {json.dumps(head | event)}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")


@dataclass
class Drill:
    """A running platform. What is typed into it goes into ``shown``, as on a screen."""

    far: FarEnd
    home: Path
    port: int
    keys: dict[str, str] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)

    def type(self, command: str, *, show: bool = True) -> str:
        arguments = ["wootz", *re.findall(r'"[^"]*"|\S+', command)[1:]]
        arguments = [word.strip('"') for word in arguments]
        result = subprocess.run(
            [WOOTZ, *arguments[1:]], capture_output=True, text=True, env=environment(self.home), cwd=self.home
        )
        said = (result.stdout + result.stderr).rstrip()
        said = re.sub(r"(?m)[ \t]+$", "", said).strip("\n")
        if show:
            self.shown.append(f"$ {command}\n{said}")
        return result.stdout

    def ask(self, times: int = 1, *, key: str = "app", **body: Any) -> list[int]:
        body = {"model": "chat", "messages": [{"role": "user", "content": "What is steel?"}]} | body
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60) as client:
            head = {"authorization": f"Bearer {self.keys[key]}"}
            return [client.post("/v1/chat/completions", json=body, headers=head).status_code for _ in range(times)]

    def signal(self, times: int = 1, *, key: str = "admin", **body: Any) -> None:
        head = {"authorization": f"Bearer {self.keys[key]}"}
        for _ in range(times):
            answer = httpx.post(f"http://127.0.0.1:{self.port}/v1/signals", json=body, headers=head)
            assert answer.status_code == 202, answer.text

    def incident(self, rule: str, *, open_: bool = True) -> dict[str, Any]:
        """Wait until there is one, or until it is over."""
        url = f"http://127.0.0.1:{self.port}/admin/alerts?state={'open' if open_ else 'resolved'}"
        for _ in range(240):
            found = httpx.get(url, headers={"authorization": f"Bearer {self.keys['admin']}"}).json()["data"]
            if here := [one for one in found if one["rule"] == rule]:
                return here[0]
            time.sleep(0.5)
        raise AssertionError(f"{rule} is not {'open' if open_ else 'over'}")

    def look(self, rule: str) -> dict[str, Any]:
        """What everybody types first."""
        incident = self.incident(rule)
        time.sleep(2)  # So that what is to be done, and told, is.
        self.type(f"wootz alerts show {incident['id'][:12]}")
        return incident


DRILLS: dict[str, tuple[dict[str, dict[str, Any]], Callable[[Drill], None], dict[str, Any]]] = {}


def drill(page: str, rules: dict[str, dict[str, Any]], **alerts: Any):
    """``rules`` that are on, with what the drill changes in them; ``alerts`` is the rest of ``[alerts]``."""

    def add(happen: Callable[[Drill], None]) -> Callable[[Drill], None]:
        DRILLS[page] = rules, happen, alerts
        return happen

    return add


# --- the incidents ------------------------------------------------------------------------------------------------


@drill("provider-errors", {"provider-errors": SHORT}, acting=["fail_over"])
def provider_errors(drill: Drill) -> None:
    drill.far.behaves["a"] = {"status": 503}
    drill.ask(12)
    drill.look("provider-errors")
    drill.far.behaves["a"] = {}
    drill.type("wootz cost report --by deployment --last 30m")
    drill.incident("provider-errors", open_=False)
    drill.type("wootz alerts list --all")


@drill("provider-refuses-key", {"provider-refuses-key": SHORT})
def provider_refuses_key(drill: Drill) -> None:
    drill.far.behaves["a"] = {"status": 401}
    drill.ask(6, model="a")
    drill.look("provider-refuses-key")


@drill("provider-rate-limit", {"provider-rate-limit": SHORT})
def provider_rate_limit(drill: Drill) -> None:
    drill.far.behaves["a"] = {"status": 429}
    drill.ask(8, model="a")
    drill.look("provider-rate-limit")
    drill.type("wootz limits suggest --days 7")


@drill("errors", {"errors": SHORT})
def errors(drill: Drill) -> None:
    drill.far.behaves = {"a": {"status": 500}, "b": {"status": 500}}
    drill.ask(6)
    drill.look("errors")
    drill.type("wootz alerts check")


@drill("latency", {"latency-p99": SHORT | {"fires": 1.0, "clears": 0.8}})
def latency(drill: Drill) -> None:
    drill.far.behaves["a"] = {"wait": 1.5}
    drill.ask(6, model="a")
    drill.look("latency-p99")
    drill.type("wootz trace latency --last 30m")


@drill("saturation", {"queue-depth": SHORT | {"fires": 8, "clears": 4, "least": 1}})
def saturation(drill: Drill) -> None:
    drill.signal(4, kind="queue_depth", value=40, subject="local")
    drill.look("queue-depth")


@drill("out-of-memory", {"out-of-memory": {}, "engine-died": {}})
def out_of_memory(drill: Drill) -> None:
    drill.signal(kind="out_of_memory", subject="local")
    incident = drill.look("out-of-memory")
    drill.type(f"wootz alerts ack {incident['id'][:12]}")
    drill.type("wootz alerts list")


@drill("traffic-gone", {"traffic-gone": {"every": "1s", "least": 5, "window": "2h"}})
def traffic_gone(drill: Drill) -> None:
    drill.look("traffic-gone")
    drill.type("wootz cost report --by hour --last 6h")


@drill("records-lost", {"records-lost": {"every": "1s"}})
def records_lost(drill: Drill) -> None:
    drill.signal(kind="rows_lost", value=3)
    drill.look("records-lost")


LOOP = {"prompt": 2_000_000, "completion": 2000}


@drill("cost-spike", {"cost-spike": {"every": "1s"}}, acting=["limit_caller"])
def cost_spike(drill: Drill) -> None:
    drill.far.behaves["a"] = LOOP
    drill.ask(12, key="planner", model="a")
    drill.look("cost-spike")
    drill.type("wootz cost report --by key,user --last 1h")
    drill.type("wootz keys list")
    codes = drill.ask(10, key="planner", model="a")
    drill.shown.append(f"# the next ten requests of the planner: {', '.join(map(str, codes))}")


@drill(
    "conversation-loop",
    {"conversation-loop": SHORT | {"fires": 20, "clears": 10}, "conversation-cost": {"every": "1s"}},
)
def conversation_loop(drill: Drill) -> None:
    drill.ask(25, key="planner", model="a", metadata={"conversation": "plan-7"})
    drill.look("conversation-loop")
    drill.type("wootz cost report --by tag:conversation,key --last 30m")


@drill("feature-cost", {"feature-cost": {"every": "1s", "window": "1d", "least": 10}})
def feature_cost(drill: Drill) -> None:
    drill.far.behaves["a"] = {"prompt": 400_000}
    drill.ask(40, model="a", metadata={"feature": "search"})
    drill.look("feature-cost")
    drill.type("wootz cost report --by feature,prompt_version --last 1h")


@drill("resolution-cost", {"resolution-cost": {"every": "1s", "least": 10, "window": "1d"}})
def resolution_cost(drill: Drill) -> None:
    for n in range(12):
        for end, prompt in (("a", 1000), ("b", 40_000)):
            drill.far.behaves[end] = {"prompt": prompt + 100 * n}
            name = f"{end}-{n}"
            drill.far.behaves["b" if end == "a" else "a"] = {"status": 503}
            drill.ask(1, metadata={"conversation": name})
            drill.signal(kind="resolved", subject=name, key="app")
    drill.look("resolution-cost")


@drill("price-unknown", {"price-unknown": {"every": "1s", "least": 3}})
def price_unknown(drill: Drill) -> None:
    drill.ask(4, model="unpriced")
    drill.look("price-unknown")
    drill.type("wootz cost report --by deployment --last 1h")


@drill("cache-drop", {"prompt-cache-drop": {"every": "1s", "least": 10}})
def cache_drop(drill: Drill) -> None:
    drill.far.behaves["a"] = drill.far.behaves["b"] = {"cached": 0, "prompt": 9000}
    drill.ask(60)
    drill.look("prompt-cache-drop")
    drill.type("wootz cost report --by model,prompt_version --last 1h")


@drill("refusals", {"refusals": {"every": "1s", "least": 20}})
def refusals(drill: Drill) -> None:
    drill.far.behaves["a"] = drill.far.behaves["b"] = {"text": "I'm sorry, but I can't help with that."}
    drill.ask(40)
    drill.look("refusals")


@drill("injection-attempts", {"injection-attempts": {"every": "1s"}}, acting=["limit_caller"])
def injection_attempts(drill: Drill) -> None:
    drill.ask(2, key="planner")
    drill.signal(14, key="mallory", kind="injection_attempt", subject="prompt-guard")
    drill.look("injection-attempts")


@drill("quality-drift", {"quality-drift": {"every": "1s", "least": 20}})
def quality_drift(drill: Drill) -> None:
    for n in range(60):
        drill.signal(kind="quality", value=0.55 + 0.01 * (n % 9), model="near")
    drill.look("quality-drift")


@drill("faithfulness-drop", {"faithfulness-drop": {"every": "1s", "least": 20}})
def faithfulness_drop(drill: Drill) -> None:
    for n in range(60):
        drill.signal(kind="faithfulness", value=0.4 + 0.02 * (n % 9), model="near")
    drill.look("faithfulness-drop")


@drill("secret-stale", {"secret-stale": {"every": "1s"}})
def secret_stale(drill: Drill) -> None:
    drill.look("secret-stale")
    drill.type("wootz secrets list --stale")


@drill("model-retires", {"model-retires": {"every": "1s"}})
def model_retires(drill: Drill) -> None:
    drill.signal(kind="retires_in_days", value=61, subject="near")
    drill.look("model-retires")
    drill.type("wootz cost report --by deployment --last 7d")
    drill.type('wootz alerts silence --rule model-retires --subject near --for 2w --why "A/B of its successor runs"')
    drill.type("wootz alerts silence")


# --- the stage ----------------------------------------------------------------------------------------------------


def environment(home: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    wanted = {"WOOTZ_HOME": str(home), "DRILL_KEY": KEY, "PAGER_SECRET": SECRET, "COLUMNS": "112", "NO_COLOR": "1"}
    return kept | wanted | {"OMP_NUM_THREADS": "1", "USER": "ann", "LOGNAME": "ann"}


CONFIG = """\
[server]
port = {port}

[alerts]
every_seconds = 1
file = "{home}/rules.toml"
acting = {acting}

[alerts.webhooks.pager]
url = "http://127.0.0.1:{far}/pager"
secret = "env:PAGER_SECRET"
private = true

[models.a]
base_url = "http://127.0.0.1:{far}/a/v1"
api_key = "env:DRILL_KEY"
price = {{ input = 2, cached_input = 0.2, output = 8 }}

[models.b]
base_url = "http://127.0.0.1:{far}/b/v1"
api_key = "env:DRILL_KEY"
price = {{ input = 4, cached_input = 0.4, output = 16 }}

[models.unpriced]
base_url = "http://127.0.0.1:{far}/b/v1"
api_key = "env:DRILL_KEY"

[routes.chat]
policy = "cheapest"
targets = ["a", "b"]
"""


def write_rules(home: Path, on: dict[str, dict[str, Any]]) -> None:
    shipped = tomllib.loads((ROOT / "src/wootz/telemetry/alerts/rules.toml").read_text())["rule"]
    lines: list[str] = []
    for name in (rule["name"] for rule in shipped):
        fields = on.get(name, {"enabled": False})
        lines += ["[[rule]]", f'name = "{name}"', *(f"{key} = {json.dumps(value)}" for key, value in fields.items())]
    (home / "rules.toml").write_text("\n".join(lines) + "\n")


def history(home: Path) -> None:
    """Eight days until an hour ago, at which the drill begins."""
    traffic = Traffic(home / "wootz.db", seed=3)
    end = NOW - timedelta(hours=2)
    traffic.normal(end - timedelta(days=9), end, per_hour=12, deployment="near", key_id=None)
    traffic.save()


def rehearse(page: str) -> str:
    """Let it happen; gives what was shown."""
    rules, happen, alerts = DRILLS[page]
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wootz-drill-")))
        far = FarEnd()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (home / "wootz.toml").write_text(
            CONFIG.format(port=port, home=home, far=far.port, acting=json.dumps(alerts.get("acting", [])))
        )
        write_rules(home, rules)
        drill = Drill(far, home, port)
        drill.keys = asyncio.run(make_keys(home))
        history(home)
        if page == "secret-stale":
            set_old_secret(home)
        process = subprocess.Popen(
            [WOOTZ, "up"], env=environment(home), cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        wait_for(port)
        happen(drill)
        told = [one["type"] for one in far.paged]
        drill.shown.append(f"# what the pager heard: {', '.join(told) or 'nothing'}")
        text = "\n\n".join(drill.shown)
        return text.replace(str(home), "~/.wootz").replace(str(port), "8080")


async def make_keys(home: Path) -> dict[str, str]:
    database = Database(f"sqlite+aiosqlite:///{home / 'wootz.db'}")
    await database.migrate()
    keys = KeyStore(database)
    scopes = {"app": "inference", "planner": "inference", "mallory": "admin", "admin": "admin"}
    made = {name: (await keys.create(name, scopes=[scope]))[1] for name, scope in scopes.items()}
    await database.close()
    return made


def set_old_secret(home: Path) -> None:
    command = [WOOTZ, "secrets", "set", "openai", "--max-age-days", "0"]
    subprocess.run(command, input=KEY, text=True, env=environment(home), check=True, capture_output=True)


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError("wootz up does not come up")


def write(page: str, shown: str) -> None:
    file = PAGES / f"{page}.md"
    block = f"<!-- drill -->\n```console\n{shown}\n```\n<!-- end of drill -->"
    text = file.read_text() if file.exists() else "<!-- drill --><!-- end of drill -->\n"
    before, _, rest = text.partition("<!-- drill -->")
    file.write_text(before + block + rest.partition("<!-- end of drill -->")[2])


if __name__ == "__main__":
    assert shutil.which(WOOTZ), "install the package first"
    alert_traffic.DEFAULTS["queue_time"] = None
    for name in sys.argv[1:] or DRILLS:
        began = time.monotonic()
        write(name, rehearse(name))
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
