"""`Watchdog`: a run that stands still says where, and ends, so that whoever started it can start it again.

Every rank touches a file of its own after each step (its *heartbeat*). A thread in each process looks at all of them:
when no step was finished for `timeout` seconds, the stacks of all threads are written to ``stacks/rank_R.txt``, one line
names the ranks whose heartbeats stopped first (the others wait for them in a collective), and the process ends with
`EXIT_CODE`. A thread, because a hung collective holds the main one; files, because a hung network tells nobody
anything. Resuming takes up the last checkpoint.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from wootz.training.trainer import Callback, Step, Trainer, rank, world_size

EXIT_CODE = 75
"""EX_TEMPFAIL: start it again."""


class Watchdog(Callback):
    def __init__(self, folder: Path, timeout: float = 300.0) -> None:
        self.folder, self.timeout = folder, timeout
        self._over = threading.Event()
        self._watcher: threading.Thread | None = None

    def on_start(self, trainer: Trainer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._beat(trainer.step)
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._watcher.start()

    def after_step(self, trainer: Trainer, step: Step) -> None:
        self._beat(trainer.step)

    def on_end(self, trainer: Trainer) -> None:
        self._over.set()
        if self._watcher is not None:
            self._watcher.join()
        (self.folder / f"heartbeat_{rank()}").unlink(missing_ok=True)

    def _beat(self, step: int) -> None:
        (self.folder / f"heartbeat_{rank()}").write_text(str(step))

    def _watch(self) -> None:
        own = self.folder / f"heartbeat_{rank()}"
        while not self._over.wait(min(5.0, self.timeout / 4)):
            if time.time() - own.stat().st_mtime > self.timeout:
                self._abort()

    def _abort(self) -> None:
        with (self.folder / f"stacks_{rank()}.txt").open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        print(f"rank {rank()}: no step for {self.timeout:g} seconds; {self.suspects()}", file=sys.stderr, flush=True)
        os._exit(EXIT_CODE)

    def suspects(self) -> str:
        """Ranks that are behind the others, or, if all are at one step, that nobody is."""
        steps: dict[int, Any] = {}
        for number in range(world_size()):
            try:
                steps[number] = int((self.folder / f"heartbeat_{number}").read_text())
            except (OSError, ValueError):
                steps[number] = -1
        behind = [f"rank {number}" for number, step in steps.items() if step < max(steps.values())]
        if behind:
            return f"{', '.join(behind)} stopped first, at step {min(steps.values())}"
        return f"all ranks stand at step {max(steps.values())}; see {self.folder}/stacks_*.txt for where"
