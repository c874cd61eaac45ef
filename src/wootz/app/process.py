"""One child process: started on the leash, its lines relayed under its name, ended politely or not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from wootz.core import EngineConfig

Say = Callable[[str], None]
"""Prints one line where the user looks."""


class Child:
    """A Python module that runs as a process of its own, maybe several times over.

    Its standard output and error come together as lines. Until it has worked once they are kept back: if it never
    does, the last of them is the reason. From then on they are printed as they come.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str] = (),
        *,
        environ: Mapping[str, str] | None = None,
        inherit: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.command = [sys.executable, "-m", "wootz.app.leash", module, *arguments]
        self.environ = {**os.environ, **(environ or {})}
        self.inherit = inherit
        self.process: asyncio.subprocess.Process | None = None
        self.ready = asyncio.Event()
        self.has_worked = False
        self.last_line = ""
        self._held_back: list[str] = []

    async def start(self, say: Say) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches only the supervisor, which ends things in order."""
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env=self.environ,
            pass_fds=self.inherit,
        )
        self._lines = asyncio.create_task(self._read_lines(self.process, say))

    async def wait(self) -> str:
        """Wait for its end; returns how it ended, such as ``exit code 1`` or ``SIGKILL``."""
        assert self.process is not None
        code = await self.process.wait()
        with suppress(TimeoutError):  # a grandchild may still hold the pipe
            await asyncio.wait_for(self._lines, 1)
        if self.process.stdin is not None:
            self.process.stdin.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def relay(self, say: Say) -> None:
        """Print the lines that were kept back."""
        for line in self._held_back:
            say(f"{self.name} | {line}")
        self._held_back.clear()

    async def stop(self, patience: float) -> None:
        """Ask it to end (SIGTERM); after ``patience`` seconds, end it together with whatever it started."""
        if self.process is None:
            return
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), patience)
        self.kill()
        await self.process.wait()

    def kill(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    async def _read_lines(self, process: asyncio.subprocess.Process, say: Say) -> None:
        assert process.stdout is not None
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:  # A line beyond the stream's limit is dropped; the child must never block on its output.
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip()
            if not line:
                continue
            self.last_line = line
            if self.has_worked:
                say(f"{self.name} | {line}")
            else:
                self._held_back.append(line)


def engine_process(
    name: str,
    path: Path,
    socket: Path,
    config: EngineConfig,
    adapters: Mapping[str, Path] | None = None,
    prompts: Path | None = None,
) -> Child:
    """The process that serves the model at ``path`` on a Unix socket, and the ``adapters`` on it by their names.
    ``prompts`` is the socket of another such process that computes long prompts for it."""
    arguments = ["--name", name, "--path", str(path), "--socket", str(socket), "--config", config.model_dump_json()]
    if adapters:
        arguments += ["--adapters", json.dumps({name: str(path.expanduser()) for name, path in adapters.items()})]
    if prompts is not None:
        arguments += ["--prompts", str(prompts)]
    return Child(name, "wootz.engine.server", arguments)
