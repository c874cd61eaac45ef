"""`Watchdog`: a run that stands still says where, and ends, so that whoever started it can start it again.

Every rank writes into a file of its own how far it is (its *heartbeat*). A thread in each process looks at them, and
shows by a file of its own that the process lives (its *pulse*): when no step was finished for `timeout` seconds, the
stacks of all threads are written to ``stacks_R.txt``, one line names the ranks without a pulse, or whose heartbeats
stopped first (the others wait for them in a collective), and the process ends with `EXIT_CODE`. A thread, because a
hung collective holds the main one; files, because a hung network tells nobody anything. `wootz.training.restarts` takes
up the last checkpoint.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from wootz.training.restarts import EXIT_CODE
from wootz.training.trainer import Callback, Step, Trainer, rank, world_size


class Watchdog(Callback):
    """``suspect`` is told of the ranks that are named, if any are, before the process ends."""

    def __init__(
        self, folder: Path, timeout: float = 300.0, *, suspect: Callable[[list[int]], None] = lambda ranks: None
    ) -> None:
        self.folder, self.timeout, self.suspect = folder, timeout, suspect
        self._over = threading.Event()
        self._watcher: threading.Thread | None = None

    def on_start(self, trainer: Trainer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._beat(trainer.step)
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._watcher.start()

    def before_step(self, trainer: Trainer) -> None:
        self._file("begun").write_text(str(trainer.step))

    def after_step(self, trainer: Trainer, step: Step) -> None:
        self._beat(trainer.step)

    def on_end(self, trainer: Trainer) -> None:
        self._over.set()
        if self._watcher is not None:
            self._watcher.join()
        for name in ("heartbeat", "begun", "pulse"):
            self._file(name).unlink(missing_ok=True)

    def _beat(self, step: int) -> None:
        self._file("heartbeat").write_text(str(step))

    def _file(self, name: str, number: int | None = None) -> Path:
        return self.folder / f"{name}_{rank() if number is None else number}"

    def _watch(self) -> None:
        while not self._over.wait(min(5.0, self.timeout / 4)):
            self._file("pulse").touch()
            if time.time() - self._file("heartbeat").stat().st_mtime > self.timeout:
                self._abort()

    def _abort(self) -> None:
        with (self.folder / f"stacks_{rank()}.txt").open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        suspects, why = self.suspects()
        print(f"rank {rank()}: no step for {self.timeout:g} seconds; {why}", file=sys.stderr, flush=True)
        if suspects:
            self.suspect(suspects)
        os._exit(EXIT_CODE)

    def suspects(self) -> tuple[list[int], str]:
        """Ranks whose processes show no life, or that are behind the others; none if all live and are at one step."""
        ranks = range(world_size())
        pulses = [self._time_of(number) for number in ranks]
        if still := [number for number in ranks if max(pulses) - pulses[number] > self.timeout / 2]:
            return still, f"{_names(still)} shows no sign of life"
        steps = [max(self._step_in("heartbeat", number), self._step_in("begun", number) + 0.5) for number in ranks]
        if behind := [number for number in ranks if steps[number] < max(steps)]:
            return behind, f"{_names(behind)} stopped first, at step {int(min(steps))}"
        return [], f"all ranks stand at step {int(max(steps))}; see {self.folder}/stacks_*.txt for where"

    def _step_in(self, name: str, number: int) -> float:
        try:
            return int(self._file(name, number).read_text())
        except (OSError, ValueError):
            return -1.0

    def _time_of(self, number: int) -> float:
        """By the clock of the file system, which all ranks share."""
        try:
            return self._file("pulse", number).stat().st_mtime
        except OSError:
            return 0.0


def _names(ranks: list[int]) -> str:
    return ", ".join(f"rank {number}" for number in ranks)
