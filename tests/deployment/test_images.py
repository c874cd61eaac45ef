"""The Containerfile: linted, held against what an image must be, and its last step really started."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "Containerfile"
TARGETS = ("gateway", "engine")
PINNED = re.compile(r":(?!latest)[\w.]*\d[\w.-]*(@sha256:\w{64})?$")
SECRET = re.compile(r"(?i)(key|token|secret|password)\w*\s*=")


def steps(text: str) -> list[tuple[str, str]]:
    """Instruction and arguments, continuation lines joined, comments left out."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def stage(text: str, target: str) -> dict[str, list[str]]:
    """The instructions of one stage, by their word."""
    found: dict[str, list[str]] = {}
    inside = False
    for word, rest in steps(text):
        if word == "FROM":
            inside = rest.endswith(f" AS {target}")
        if inside:
            found.setdefault(word, []).append(" ".join(rest.split()))
    return found


def breaches(text: str) -> list[str]:
    said = []
    for word, rest in steps(text):
        if word == "ARG" and "_IMAGE=" in rest and not PINNED.search(rest):
            said.append(f"{rest} is not pinned")
        if word in ("ARG", "ENV") and SECRET.search(rest):
            said.append(f"{word} {rest} would be in a layer")
        if word == "ADD" or (word == "COPY" and "." in rest.split()[:-1]):
            said.append(f"{word} {rest} takes everything")
        if word == "RUN" and "pip install" in rest and ("--no-cache-dir" not in rest or "--constraint" not in rest):
            said.append("pip keeps a cache, or takes other versions than were tested")
    for target in TARGETS:
        one = stage(text, target)
        if one.get("USER") != ["10001:10001"]:
            said.append(f"{target} runs as {one.get('USER', ['root'])[-1]}")
        health = one.get("HEALTHCHECK", [""])[0]
        if not health.startswith("--interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["):
            said.append(f"{target} has no health check")
        if "healthz" not in health:
            said.append(f"{target} is killed for its models' sake")
        if one.get("ENTRYPOINT") != ['["wootz"]'] or one.get("CMD") != ['["up"]']:
            said.append(f"{target} starts through a shell, which gets the signals")
        if not any(rest.startswith(f"--from={target}-build") for rest in one.get("COPY", [])):
            said.append(f"{target} is not built apart")
    return said


def test_it_is_linted() -> None:
    scripts = [*Path(sys.executable).parent.glob("hadolint"), *filter(None, [shutil.which("hadolint")])]
    done = subprocess.run([scripts[0], FILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_shipped_keeps_the_rules() -> None:
    assert breaches(FILE.read_text()) == []


def swap(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap("python:3.11.14-slim-bookworm", "python:latest"), "is not pinned"),
        (swap("python:3.11.14-slim-bookworm", "python"), "is not pinned"),
        (swap("ENV PATH", "ENV OPENAI_API_KEY=x PATH"), "would be in a layer"),
        (swap("COPY src src", "COPY . ."), "takes everything"),
        (swap("--no-cache-dir ", ""), "keeps a cache"),
        (swap("USER 10001:10001\n", ""), "engine runs as root"),
        (swap("--retries=3", "--retries=1"), "has no health check"),
        (swap("4000/healthz", "4000/readyz"), "for its models' sake"),
        (swap('ENTRYPOINT ["wootz"]', "ENTRYPOINT wootz"), "which gets the signals"),
        (swap("COPY --from=engine-build", "COPY --from=gateway-build"), "not built apart"),
    ],
)
def test_each_rule_finds_its_breach(change: Callable[[str], str], said: str) -> None:
    assert [one for one in breaches(change(FILE.read_text())) if said in one]


def test_only_the_package_is_sent_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert sent == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "src"}


def environment(target: str) -> dict[str, str]:
    words = shlex.split(" ".join(stage(FILE.read_text(), target)["ENV"]))
    return dict(word.split("=", 1) for word in words)


def run_as_the_image_does(binaries: Path, tmp_path: Path, target: str) -> None:
    """Its environment, entry point and health check, at another port and in other folders; then SIGTERM."""
    (home := tmp_path / "home").mkdir()
    text = stage(FILE.read_text(), target)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    moved = {"WOOTZ_HOME": str(home), "HOME": str(home), "WOOTZ_SERVER__PORT": port, "WOOTZ_SERVER__HOST": "127.0.0.1"}
    environ = {**environment(target), **moved, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    command = json.loads(text["ENTRYPOINT"][0]) + json.loads(text["CMD"][0])
    command[0] = str(binaries / command[0])
    check = [word.replace(":4000/", f":{port}/") for word in json.loads(text["HEALTHCHECK"][0].partition("CMD ")[2])]
    check[0] = str(binaries / check[0])
    assert subprocess.run(check, env=environ, capture_output=True).returncode != 0, "healthy before it answers"
    started = subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(check, env=environ, capture_output=True).returncode != 0:
            assert time.monotonic() < deadline
            assert started.poll() is None, started.communicate()[0].decode()
            time.sleep(0.2)
    finally:
        started.send_signal(signal.SIGTERM)
        out = started.communicate(timeout=60)[0].decode()
    assert started.returncode == 0, out


@pytest.mark.slow
def test_the_gateways_entry_starts_and_its_health_check_passes(tmp_path: Path) -> None:
    run_as_the_image_does(Path(sys.executable).parent, tmp_path, "gateway")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_gateways_steps_on_a_fresh_environment(tmp_path: Path) -> None:
    """The build's own commands, from nothing: needs the package registry. Installs no PyTorch."""
    (venv, work) = tmp_path / "wootz", tmp_path / "src"
    work.mkdir()
    for copied in stage(FILE.read_text(), "gateway-build")["COPY"]:
        for source in copied.split()[:-1]:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, work / source, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
            else:
                shutil.copy(ROOT / source, work / source)
    (command,) = stage(FILE.read_text(), "gateway-build")["RUN"]
    subprocess.run(["sh", "-ec", command.replace("/opt/wootz", str(venv))], cwd=work, check=True)
    found = subprocess.run([venv / "bin" / "python3", "-c", "import torch"], capture_output=True)
    assert found.returncode != 0, "the gateway's image has no PyTorch"
    run_as_the_image_does(venv / "bin", tmp_path, "gateway")
