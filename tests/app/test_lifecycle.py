"""Starting and stopping: a failure is one clear line and a non-zero code; nothing is left running or half-written."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from wootz.app.http import create_app
from wootz.app.pid_file import ask_to_reload
from wootz.app.preflight import Prepared, bind, check_master_key
from wootz.app.process import Child
from wootz.app.supervisor import StartError, Supervisor
from wootz.core import Config, ConfigError
from wootz.store import ModelStore


@pytest.fixture
def tiny(tiny_model_folder: Path) -> dict[str, str]:
    """Settings that make the tiny model the only one."""
    return {"WOOTZ_MODELS__TINY__PATH": str(tiny_model_folder)}


def fails_with(platform, code: int) -> str:
    """Wait for the end; the one line that it printed."""
    assert platform.process.wait(60) == code, platform.output
    platform._reader.join(5)
    assert len(platform.lines) == 1, platform.output
    assert platform.lines[0].startswith("error: ")
    return platform.lines[0]


def gone(processes: list[psutil.Process], seconds: float = 10) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


def test_two_starts_and_their_ends(start, tiny, tmp_path):
    """The first shows the key, the second does not; who is stopped or killed leaves no process."""
    first = start(home=tmp_path / "home", **tiny).wait_until_ready()
    assert first.output.count("Your admin key") == 1
    assert f"{first.url}/v1/chat/completions" in first.output
    headers = {"authorization": f"Bearer {first.key}"}
    assert httpx.get(f"{first.url}/v1/models", headers=headers).json()["data"][0]["id"] == "tiny"
    stops_and_leaves_no_process(first, signal.SIGINT)

    second = start(home=tmp_path / "home", **tiny).wait_until_ready()
    assert second.key == ""
    assert httpx.get(f"{second.url}/v1/models", headers=headers).status_code == 200
    children = second.children()
    second.stop(signal.SIGKILL)
    assert gone(children), "a killed supervisor takes its children along"


@pytest.mark.slow
def test_stopping_by_sigterm_leaves_no_process(start, tiny):
    stops_and_leaves_no_process(start(**tiny).wait_until_ready(), signal.SIGTERM)


def stops_and_leaves_no_process(platform, number: int) -> None:
    children = platform.children()
    assert len(children) == 2
    assert platform.stop(number) == 0
    assert gone(children, 1)
    assert "Traceback" not in platform.output


@pytest.mark.slow
def test_running_answers_may_finish_while_stopping(start, tiny):
    platform = start(**tiny).wait_until_ready()
    with streaming(platform, max_tokens=600) as lines:
        platform.process.send_signal(signal.SIGINT)
        assert list(lines)[-1] == "data: [DONE]"
    assert platform.process.wait(60) == 0


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(start, tiny):
    platform = start(WOOTZ_SERVER__DRAIN_SECONDS="300", **tiny).wait_until_ready()
    children = platform.children()
    with streaming(platform, max_tokens=2000, n=32) as lines:
        platform.process.send_signal(signal.SIGINT)
        platform.wait_for("stopping")
        assert platform.process.poll() is None
        platform.stop(signal.SIGINT)
        assert gone(children, 1)
        with pytest.raises(httpx.TransportError):
            list(lines)


@pytest.mark.slow
def test_a_reloaded_http_process_that_is_killed_comes_back_and_can_be_reloaded_again(start):
    platform = start(WOOTZ_MODELS__FAR__BASE_URL="http://127.0.0.1:9/v1").wait_until_ready()
    port = int(platform.url.rsplit(":", 1)[1])
    ask_to_reload(platform.home, port, seconds=60)
    newest = max(platform.children(), key=lambda child: child.create_time())
    assert "wootz.app.http" in newest.cmdline()
    newest.kill()
    platform.wait_for("http works again")
    ask_to_reload(platform.home, port, seconds=60)
    assert httpx.get(f"{platform.url}/readyz").status_code == 200
    assert platform.stop() == 0


async def test_a_check_that_fails_is_told_and_ends_the_child(tmp_path):
    said = list[str]()

    async def fails(_child: Child) -> bool:
        raise ValueError("read of closed file")

    with bind("127.0.0.1", 0) as listener:
        prepared = Prepared(listener, {})
        supervisor = Supervisor(Config(), prepared, tmp_path, say=said.append, accounts=False)
        with pytest.raises(StartError, match="SIGKILL"):
            await supervisor.keep(Child("asleep", "sleeps"), fails)
    assert "read of closed file" in said[0]


@contextmanager
def streaming(platform, **fields) -> Iterator[Iterator[str]]:
    """An answer under way: its lines after the first, read as they come."""
    body = {"model": "tiny", "prompt": "The", "ignore_eos": True, "stream": True, **fields}
    headers = {"authorization": f"Bearer {platform.key}"}
    url = f"{platform.url}/v1/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=300) as response:
        assert response.status_code == 200
        lines = (line for line in response.iter_lines() if line)
        assert next(lines).startswith("data: ")
        yield lines


@pytest.mark.slow
def test_port_in_use(start, tiny):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = fails_with(start("up", "--port", port, **tiny), 2)
    assert f"port {port}" in line
    assert "--port" in line


def test_unset_secret(start, tiny):
    remote = {"WOOTZ_MODELS__GPT__BASE_URL": "https://api.example/v1", "WOOTZ_MODELS__GPT__API_KEY": "env:NOT_SET_HERE"}
    platform = start(**tiny, **remote)
    line = fails_with(platform, 2)
    assert "env:NOT_SET_HERE" in line
    assert not platform.home.exists()


def test_a_home_has_a_master_key_and_does_not_start_without_it(tmp_path):
    config = Config.model_validate({"home": tmp_path})
    check_master_key(config)
    check_master_key(config)
    (tmp_path / "secrets.key").rename(tmp_path / "elsewhere")
    (tmp_path / "secrets.db").touch()
    with pytest.raises(ConfigError, match=r"secrets.master_key: the master key .* is gone"):
        check_master_key(config)


async def test_a_server_does_not_start_with_a_master_key_that_opens_nothing(tmp_path):
    config = Config.model_validate({"home": tmp_path, "models": {}})
    app = create_app(config, {})
    async with app.router.lifespan_context(app):
        await app.state.gateway.kept.key()
    (tmp_path / "secrets.key").rename(tmp_path / "right.key")
    check_master_key(config)  # It can be had, and locks.
    app = create_app(config, {})
    with pytest.raises(ConfigError, match="what is kept for users can't be opened: the master key does not open it"):
        async with app.router.lifespan_context(app):
            pass
    (tmp_path / "right.key").replace(tmp_path / "secrets.key")
    app = create_app(config, {})
    async with app.router.lifespan_context(app):
        pass


def test_with_a_database_elsewhere_the_master_key_is_named(tmp_path, monkeypatch):
    elsewhere = {"home": tmp_path, "database": {"url": "postgresql://wootz@db.example/wootz"}}
    with pytest.raises(ConfigError, match=r"secrets.master_key: has to be named .*; make one"):
        check_master_key(Config.model_validate(elsewhere))
    assert not (tmp_path / "secrets.key").exists()
    (tmp_path / "secrets.key").touch()
    with pytest.raises(ConfigError, match=r'it was "file:.*secrets.key" so far'):
        check_master_key(Config.model_validate(elsewhere))
    monkeypatch.setenv("THE_KEY", base64.b64encode(bytes(32)).decode())
    check_master_key(Config.model_validate(elsewhere | {"secrets": {"master_key": "env:THE_KEY"}}))


@pytest.mark.slow
def test_a_path_that_is_not_there(start, tmp_path):
    line = fails_with(start(WOOTZ_MODELS__TINY__PATH=str(tmp_path / "nothing")), 2)
    assert "models.tiny" in line


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, b"", b"this is no model"])
def test_broken_model_file(start, tmp_path, content):
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    assert "broken.gguf" in fails_with(start(WOOTZ_MODELS__TINY__PATH=str(file)), 2)


@pytest.mark.slow
def test_truncated_weights(start, tmp_path, tiny_model_folder):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    assert "model.safetensors" in fails_with(start(WOOTZ_MODELS__TINY__PATH=str(folder)), 2)


@pytest.mark.slow
def test_a_model_that_the_engine_cannot_load(start, tmp_path, tiny_model_folder):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"perceptron"'))
    line = fails_with(start(WOOTZ_MODELS__TINY__PATH=str(folder)), 1)
    assert "tiny does not start" in line
    assert "perceptron" in line


@pytest.mark.slow
def test_unreachable_database(start, tiny):
    key = {"WOOTZ_SECRETS__MASTER_KEY": "env:THE_KEY", "THE_KEY": base64.b64encode(bytes(32)).decode()}
    line = fails_with(start(WOOTZ_DATABASE__URL="postgresql://wootz:hunter2@127.0.0.1:9/wootz", **tiny, **key), 2)
    assert "database" in line
    assert "hunter2" not in line


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 48 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder]).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_full_disk(start, small_disk, smollm2_gguf):
    """The model does not fit: one line, and nothing of it stays but what a later pull goes on from."""
    platform = start(home=small_disk / "home", WOOTZ_MODELS__SMOL__SOURCE=f"file:{smollm2_gguf}")
    line = fails_with(platform, 1)
    assert "full" in line or "space" in line
    assert ModelStore(small_disk / "home" / "models").list() == []


@pytest.mark.slow
def test_home_without_room(start, small_disk, tiny):
    (small_disk / "filler").write_bytes(b"x" * (40 * 2**20))
    assert "full" in fails_with(start(home=small_disk / "home", **tiny), 2)


@pytest.mark.slow
def test_home_that_is_a_file(start, tmp_path, tiny):
    (tmp_path / "file").write_text("")
    line = fails_with(start(home=tmp_path / "file" / "home", **tiny), 2)
    assert "--home" in line


@pytest.mark.slow
def test_serve_needs_no_key_and_answers_only_this_machine(start, tiny_model_folder):
    platform = start("serve", str(tiny_model_folder), "--name", "mine", "--port", "0").wait_until_ready()
    body = {"model": "mine", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    url = f"{platform.url}/v1/chat/completions"
    assert httpx.post(url, json=body, timeout=30).status_code == 200
    assert httpx.post(url, json=body, headers={"authorization": "Bearer whatever"}, timeout=30).status_code == 200
    for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", ""):
        refused = httpx.post(url, json=body, headers={"host": name})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "wrong_host")
    for name in ("localhost", "LOCALHOST:80", "[::1]:8080"):
        assert httpx.get(f"{platform.url}/healthz", headers={"host": name}).status_code == 200
    assert httpx.get(f"{platform.url}/chat").status_code == 200
