"""Where a running `wootz up` can be found: ``WOOTZ_HOME/run/PORT.json``, locked as long as it lives, with its process
id and how its reloads went."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from wootz.core import ConfigError, NotFoundError, WootzError


class Running(msgspec.Struct):
    pid: int
    reloads: int = 0
    """That were asked for and have ended, well or not."""
    failed: str = ""
    """Why the last one did."""


class PidFile:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.state = path, Running(os.getpid())
        self._file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # On the same port of another address.
            os.close(self._file)
            raise ConfigError(
                f"another `wootz up` with this home has the port {path.stem}", hint="choose another with --port"
            ) from None
        self._write()

    def reloaded(self, failed: str = "") -> None:
        self.state.reloads += 1
        self.state.failed = failed
        self._write()

    def _write(self) -> None:
        content = msgspec.json.encode(self.state)
        os.pwrite(self._file, content, 0)
        os.ftruncate(self._file, len(content))

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._file)


@contextmanager
def pid_file(home: Path, port: int) -> Iterator[PidFile]:
    file = PidFile(path_of(home, port))
    try:
        yield file
    finally:
        file.close()


def path_of(home: Path, port: int) -> Path:
    return home / "run" / f"{port}.json"


def ask_to_reload(home: Path, port: int, *, seconds: float) -> None:
    """Have the `wootz up` on this port start a new HTTP process, and wait until that has its place.

    Raises `NotFoundError` where none runs, `WootzError` where it went wrong.
    """
    before = _running(home, port)
    os.kill(before.pid, signal.SIGHUP)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        now = _running(home, port)
        if now.reloads > before.reloads:
            if now.failed:
                raise WootzError(f"it goes on as before: {now.failed}", code="reload_failed")
            return
        time.sleep(0.05)
    raise WootzError(f"it has not reloaded within {seconds:g} s", hint="its own output tells more")


def _running(home: Path, port: int) -> Running:
    path = path_of(home, port)
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return msgspec.json.decode(file.read(), type=Running)
    except (FileNotFoundError, msgspec.MsgspecError):
        pass
    raise NotFoundError(f"no `wootz up` runs on port {port} with the home {home}", hint="start it, or name its --port")
