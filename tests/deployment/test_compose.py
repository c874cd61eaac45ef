"""The Compose file by its published schema and by rules; the balancer's configuration by HAProxy where there is one."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import tomllib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import check_jsonschema
import httpx
import jsonschema
import pytest
import yaml

from wootz.core import Config, load_config

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose"
SCHEMAS = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
SECRET_NAME = re.compile(r"(?i)password|secret|token|key")

Tree = dict[str, Any]


def shipped() -> Tree:
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())


def breaches(tree: Tree) -> list[str]:
    said, services = [], tree["services"]
    for name, service in services.items():
        if not re.search(r":\d[\w.]*$", service["image"]):
            said.append(f"{name}: {service['image']} is not pinned")
        if any(not str(port).startswith("127.0.0.1:") for port in service.get("ports", [])):
            said.append(f"{name} can be reached from outside")
        for variable, value in service.get("environment", {}).items():
            if SECRET_NAME.search(variable) and not str(value).startswith("/run/secrets/"):
                said.append(f"{name}: {variable} is in the clear")
        if any(
            re.search("(?i)pass|secret|token", word) and not word.startswith("/") for word in service.get("command", [])
        ):
            said.append(f"{name}: arguments are there for everybody to read")
        if "no-new-privileges:true" not in service.get("security_opt", []):
            said.append(f"{name} may gain privileges")
        if "mem_limit" not in service:
            said.append(f"{name} may take all memory")
        undeclared = set(service.get("secrets", [])) - set(tree["secrets"])
        said += [f"{name}: no secret {one}" for one in undeclared]
    for name, secret in tree["secrets"].items():
        if set(secret) != {"file"} or not secret["file"].startswith("${SECRETS_FOLDER:?"):
            said.append(f"secret {name} has no place outside of this folder")
    replicas = [service for name, service in services.items() if name.startswith("gateway")]
    if len(replicas) < 2:
        said.append("one replica")
    for replica in replicas:
        if replica.get("user") != "10001:10001" or not replica.get("read_only") or replica.get("cap_drop") != ["ALL"]:
            said.append("a gateway may do more than it needs")
        notice, drain = (
            float(replica["environment"][f"WOOTZ_SERVER__{name}"]) for name in ("DRAIN_NOTICE_SECONDS", "DRAIN_SECONDS")
        )
        if float(replica["stop_grace_period"][:-1]) < notice + drain + 13:
            said.append("a gateway is killed while it drains")
    if len({str(replica["volumes"]) for replica in replicas}) < len(replicas):
        said.append("two gateways share a home")
    if not tree["networks"]["stores"].get("internal"):
        said.append("the stores lead outside")
    for name in ("database", "cache"):
        if services[name]["networks"] != ["stores"]:
            said.append(f"{name} is on a network with a way out")
    return said


def test_it_is_what_compose_reads() -> None:
    jsonschema.validate(shipped(), json.loads((SCHEMAS / "compose-spec.json").read_text()))


def test_what_is_shipped_keeps_the_rules() -> None:
    assert breaches(shipped()) == []


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda t: t["services"]["database"].update(image="postgres:latest"), "is not pinned"),
        (lambda t: t["services"]["database"].update(ports=["5432:5432"]), "from outside"),
        (lambda t: t["services"]["database"]["environment"].update(POSTGRES_PASSWORD="x"), "in the clear"),
        (lambda t: t["services"]["cache"].update(command=["valkey-server", "--requirepassword=x"]), "to read"),
        (lambda t: t["services"]["cache"].pop("security_opt"), "gain privileges"),
        (lambda t: t["services"]["cache"].pop("mem_limit"), "all memory"),
        (lambda t: t["secrets"].pop("redis-users"), "no secret redis-users"),
        (lambda t: t["secrets"]["master-key"].update(file="./master-key"), "no place outside"),
        (lambda t: t["services"].pop("gateway-b"), "one replica"),
        (lambda t: t["services"]["gateway-a"].update(read_only=False), "more than it needs"),
        (lambda t: t["services"]["gateway-a"].update(stop_grace_period="10s"), "killed while it drains"),
        (lambda t: t["services"]["gateway-a"].update(volumes=t["services"]["gateway-b"]["volumes"]), "share a home"),
        (lambda t: t["networks"]["stores"].update(internal=False), "lead outside"),
        (lambda t: t["services"]["cache"].update(networks=["stores", "front"]), "a way out"),
    ],
)
def test_each_rule_finds_its_breach(break_it: Callable[[Tree], Any], said: str) -> None:
    tree = copy.deepcopy(shipped())
    break_it(tree)
    assert [one for one in breaches(tree) if said in one]


def test_its_configuration_is_one_that_wootz_reads_and_names_the_secrets_that_are_mounted() -> None:
    text = (COMPOSE / "wootz.toml").read_text()
    config = Config.model_validate(tomllib.loads(text))
    assert config.server.master_key, "without one the first start would print an administrator's key into the log"
    mounted = {f"file:/run/secrets/{name}" for name in shipped()["services"]["gateway-a"]["secrets"]}
    assert set(re.findall(r'"(file:[^"]+)"', text)) == mounted


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs HAProxy")
def test_haproxy_reads_the_balancers_configuration() -> None:
    environ = {**os.environ, "GATEWAY_A": "127.0.0.1:1", "GATEWAY_B": "127.0.0.1:2"}
    done = subprocess.run(["haproxy", "-c", "-f", COMPOSE / "haproxy.cfg"], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs HAProxy")
def test_the_balancer_says_who_asks_and_how(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Replica(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.headers.get_all("x-forwarded-for"), self.headers["x-forwarded-proto"]))
            self.send_response(200)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Replica) as replica, socket.socket() as free:
        threading.Thread(target=replica.serve_forever).start()
        free.bind(("127.0.0.1", 0))
        port, place = free.getsockname()[1], f"127.0.0.1:{replica.server_port}"
        free.close()
        text = (COMPOSE / "haproxy.cfg").read_text().replace("bind :4000", f"bind 127.0.0.1:{port}")
        (tmp_path / "haproxy.cfg").write_text(text)
        environ = {**os.environ, "GATEWAY_A": place, "GATEWAY_B": place}
        with subprocess.Popen(
            ["haproxy", "-f", tmp_path / "haproxy.cfg"], env=environ, stdout=subprocess.PIPE
        ) as haproxy:
            http = httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=8))
            http.get("/plain", headers={"x-forwarded-for": "198.51.100.1"})
            http.get("/tls", headers={"x-forwarded-proto": "https"})
            haproxy.kill()
        replica.shutdown()
    told = [one for one in seen if one[0]]  # The others are looks at /readyz.
    assert told == [(["198.51.100.1", "127.0.0.1"], "http"), (["127.0.0.1"], "https")]


def test_the_gateways_believe_the_balancers_network_and_no_other() -> None:
    tree = shipped()
    (network,) = tree["networks"]["front"]["ipam"]["config"]
    said = tree["services"]["gateway-a"]["environment"]["WOOTZ_SERVER__TRUSTED_PROXIES"]
    config = load_config(
        environ={"WOOTZ_SERVER__TRUSTED_PROXIES": said, "WOOTZ_HOME": "/nowhere"}, cwd=Path("/nowhere")
    )
    assert config.config.server.trusted_proxies == [network["subnet"]]
    assert [name for name, one in tree["services"].items() if "front" in one["networks"]] == [
        "gateway-a", "gateway-b", "balancer",
    ]  # fmt: skip


def test_the_balancer_asks_for_readiness_and_knows_both_replicas() -> None:
    text = (COMPOSE / "haproxy.cfg").read_text()
    assert "option httpchk GET /readyz" in text
    assert set(re.findall(r"^\s+server (\S+)", text, re.MULTILINE)) == {
        name for name in shipped()["services"] if name.startswith("gateway")
    }
    assert len(set(re.findall(r"weight (\d+)", text))) == 1
