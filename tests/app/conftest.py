"""The real platform, started as a user starts it: `wootz up` in a process of its own, on a home of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from wootz.telemetry.ledger import BEHIND_SECONDS


class Platform:
    """A running `wootz up` (or `wootz serve`): its URL, its admin key, and what it printed."""

    def __init__(self, folder: Path, home: Path, arguments: list[str], environ: dict[str, str]) -> None:
        self.home = home
        settings = {"WOOTZ_HOME": str(home), "OMP_NUM_THREADS": "1", "WOOTZ_ENGINE__THREADS": "1", "COLUMNS": "400"}
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("wootz")), *arguments],
            env={**os.environ, **settings, **environ},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(line.rstrip() for line in self.process.stdout)

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        """The first match in what was printed so far or is printed within some time."""
        deadline = time.monotonic() + seconds
        while (match := re.search(pattern, self.output)) is None:
            assert time.monotonic() < deadline, f"{pattern!r} never came:\n{self.output}"
            assert self.process.poll() is None, f"it ended ({self.process.returncode}):\n{self.output}"
            time.sleep(0.05)
        return match

    def wait_until_ready(self) -> Platform:
        self.url = self.wait_for(r"Ready: (\S+)")[1]
        key = re.search(r"sk-wootz-[\w-]{43}", self.output)
        self.key = key[0] if key else ""
        return self

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, module: str) -> psutil.Process:
        (found,) = (child for child in self.children() if module in child.cmdline())
        return found

    def ledger(self, where: str = "1") -> list[sqlite3.Row]:
        time.sleep(30 * BEHIND_SECONDS)  # Rows come a little behind the answers.
        with contextlib.closing(sqlite3.connect(f"file:{self.home / 'wootz.db'}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            return database.execute(f"SELECT * FROM requests WHERE {where}").fetchall()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(5)
        return code


Start = Callable[..., Platform]


@contextlib.contextmanager
def starter(folder: Path) -> Iterator[Start]:
    started: list[Platform] = []

    def start(*arguments: str, home: Path | None = None, **environ: str) -> Platform:
        home = home or folder / f"home{len(started)}"
        started.append(Platform(folder, home, list(arguments) or ["up", "--port", "0"], environ))
        return started[-1]

    yield start
    for platform in started:
        platform.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a platform of this test's own: ``start("up", "--port", "0", WOOTZ_…="…")``."""
    with starter(tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Iterator[Platform]:
    """One running platform with the tiny model, under the name ``tiny``, for all tests that leave it running."""
    folder = tmp_path_factory.mktemp("platform")
    (folder / "home").mkdir()
    (folder / "home" / "wootz.toml").write_text(f'[models.tiny]\npath = "{tiny_model_folder}"\n')
    with starter(folder) as start:
        yield start(home=folder / "home").wait_until_ready()


@pytest.fixture(scope="session")
def real_platform(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Iterator[Platform]:
    """A running platform that pulled the real model on its first start, under the name ``smollm2``."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "home").mkdir()
    (folder / "home" / "wootz.toml").write_text(f'[models.smollm2]\nsource = "file:{smollm2_gguf}"\n')
    with starter(folder) as start:
        yield start(home=folder / "home").wait_until_ready()
