"""`RunFolder`: what a run leaves, and where it goes on from.

    recipe.json        all that was asked for
    environment.json   versions, machine, git state
    status.json        stage, step, since when: what `wootz runs list` shows
    metrics.jsonl      a line per step: loss, grad_norm, learning_rate, tokens_per_second
    evaluations.jsonl  held-out loss and bits per byte at steps
    samples.jsonl      what the model wrote at steps
    experts.jsonl      of a mixture of experts, how busy each is
    events.jsonl       what guards saw and did
    suspects.json      ranks that a guard named as it ended the run, for `wootz.training.restarts`
    checkpoints/       `wootz.training.checkpoints`
    plots/             curves as pictures
    tensorboard/       the metrics once more, as event files
    data/              the text it learned from, its tokenizer and tokens (`wootz.data.build`, `wootz.data.tokens`)
    model/             the result, in Hugging Face layout

Plain files that any tool reads: no server has to be up for them, and a run that was killed has lost none of them.
Nothing here imports PyTorch, so a machine that only watches can.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from wootz.core.atomic import atomic_file
from wootz.core.errors import ConfigError, NotFoundError

PACKAGES = ("wootz", "torch", "numpy", "tokenizers", "rustbpe")
ALIVE_SECONDS = 120
"""Without a sign for so long, a run that says it is running was stopped."""


class RunFolder:
    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @staticmethod
    def create(
        path: Path | str, recipe: dict[str, Any], today: Callable[[dict[str, Any]], dict[str, Any]] = dict
    ) -> RunFolder:
        """A new folder, or that of the same recipe to go on in. Raises `ConfigError` for one of another recipe.

        ``today`` makes of a recipe that an older version of us wrote what this one would write.
        """
        run = RunFolder(path)
        if (run.path / "recipe.json").exists():
            wanted = json.loads(json.dumps(recipe))
            if (kept := today(run.recipe)) != wanted:
                changed = ", ".join(_differences(kept, wanted))
                raise ConfigError(f"{path}: holds a run with other settings ({changed})", hint="choose another --out")
            return run
        if run.path.exists() and any(run.path.iterdir()):
            raise ConfigError(f"{path}: is not empty, and not a run", hint="choose another --out")
        (run.path / "plots").mkdir(parents=True, exist_ok=True)
        run._write("environment.json", environment())
        run._write("recipe.json", recipe)
        return run

    @staticmethod
    def open(path: Path | str) -> RunFolder:
        """Raises `NotFoundError` for what is no run."""
        if not (Path(path) / "recipe.json").exists():
            raise NotFoundError(f"{path}: not a run", hint="`wootz runs list` shows those there are")
        return RunFolder(path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> dict[str, Any]:
        return json.loads((self.path / "recipe.json").read_text())

    @property
    def environment(self) -> dict[str, Any]:
        return json.loads((self.path / "environment.json").read_text())

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def tokenizer(self) -> Path:
        return self.data / "tokenizer"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    # --- status -----------------------------------------------------------------------------------------------

    def set_status(self, state: str, **facts: Any) -> None:
        self._write("status.json", {"state": state, "at": datetime.now(UTC).isoformat(), **facts})

    @property
    def status(self) -> dict[str, Any]:
        """``state`` is running, done, failed, or stopped: running once, and without a sign since."""
        try:
            status = json.loads((self.path / "status.json").read_text())
        except (OSError, ValueError):
            return {"state": "new", "at": datetime.fromtimestamp(self.path.stat().st_mtime, UTC).isoformat()}
        silent = datetime.now(UTC) - datetime.fromisoformat(status["at"])
        if status["state"] == "running" and silent.total_seconds() > ALIVE_SECONDS:
            status["state"] = "stopped"
        return status

    def suspect(self, ranks: list[int], *, sure: bool = False) -> None:
        """Those that ended the run. ``sure``: it would come to the same if they were started again."""
        self._write("suspects.json", {"ranks": ranks, "sure": sure})

    def take_suspects(self) -> tuple[list[int], bool]:
        file = self.path / "suspects.json"
        if not file.exists():
            return [], False
        found = json.loads(file.read_text())
        file.unlink()
        return found["ranks"], found["sure"]

    # --- lines ------------------------------------------------------------------------------------------------

    def append(self, kind: str, row: dict[str, Any]) -> None:
        """One line of ``metrics``, ``evaluations``, ``samples`` or ``events``."""
        with (self.path / f"{kind}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """In order of their steps. A line cut off by a kill is passed over; of a step made twice, the last holds."""
        by_step: dict[Any, dict[str, Any]] = {}
        for number, row in enumerate(self._lines(kind)):
            by_step[row.get("step", number) if kind != "events" else number] = row
        return list(by_step.values()) if kind == "events" else [by_step[step] for step in sorted(by_step)]

    def curve(self, kind: str, figure: str) -> list[tuple[int, float]]:
        """``(step, figure)``; of ``evaluations`` also the accuracy of a benchmark by its name."""
        points = []
        for row in self.rows(kind):
            scored = row.get("benchmarks", {}).get(figure)
            if figure in row or scored:
                points.append((row["step"], scored["accuracy"] if scored else row[figure]))
        return points

    def _lines(self, kind: str) -> Iterator[dict[str, Any]]:
        file = self.path / f"{kind}.jsonl"
        if not file.exists():
            return
        for line in file.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def go_back_to(self, step: int) -> None:
        """Forget what was noted from ``step`` on: it is made again."""
        for kind in ("metrics", "evaluations", "samples"):
            rows = [row for row in self.rows(kind) if row["step"] < step]
            if (self.path / f"{kind}.jsonl").exists():
                with atomic_file(self.path / f"{kind}.jsonl") as file:
                    file.write("".join(json.dumps(row) + "\n" for row in rows).encode())

    # --- stages -----------------------------------------------------------------------------------------------

    def finished(self, stage: str) -> dict[str, Any] | None:
        """What a stage reported when it was done; None if it was not yet."""
        file = self.path / "stages" / f"{stage}.json"
        return json.loads(file.read_text()) if file.exists() else None

    @property
    def bits_per_byte(self) -> float | None:
        """Of all held-out text, once it was evaluated; before that, of the few documents that training glances at."""
        if evaluated := self.finished("evaluate"):
            return evaluated["bits_per_byte"]
        glances = self.rows("evaluations")
        return glances[-1]["bits_per_byte"] if glances else None

    def finish(self, stage: str, report: dict[str, Any]) -> None:
        (self.path / "stages").mkdir(exist_ok=True)
        self._write(f"stages/{stage}.json", report)

    def _write(self, name: str, value: dict[str, Any]) -> None:
        with atomic_file(self.path / name) as file:
            file.write((json.dumps(value, indent=2) + "\n").encode())


@dataclass(frozen=True)
class Comparison:
    """Settings in which runs differ, and what came of them."""

    settings: dict[str, list[Any]]
    results: dict[str, list[Any]]


def list_runs(root: Path) -> list[RunFolder]:
    """Newest first."""
    if not root.is_dir():
        return []
    runs = [RunFolder(path) for path in root.iterdir() if (path / "recipe.json").exists()]
    return sorted(runs, key=lambda run: run.status["at"], reverse=True)


def find_run(root: Path, name: str) -> RunFolder:
    """By the name of its folder below ``root``, or by path."""
    return RunFolder.open(root / name if (root / name / "recipe.json").exists() else name)


def benchmark_names(runs: list[RunFolder]) -> list[str]:
    rows = [row for run in runs for row in run.rows("evaluations")[-1:]]
    return list(dict.fromkeys(name for row in rows for name in row.get("benchmarks", {})))


def compare(runs: list[RunFolder]) -> Comparison:
    recipes = [_flat(run.recipe) for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    settings = {key: [recipe.get(key) for recipe in recipes] for key in keys}
    results: dict[str, list[Any]] = {"last loss": [], "bits per byte": [], "tokens/s": []}
    for run in runs:
        metrics = run.rows("metrics")
        results["last loss"].append(metrics[-1]["loss"] if metrics else None)
        results["bits per byte"].append(run.bits_per_byte)
        speeds = sorted(row["tokens_per_second"] for row in metrics)
        results["tokens/s"].append(speeds[len(speeds) // 2] if speeds else None)
    for name in benchmark_names(runs):
        last = [run.curve("evaluations", name)[-1:] for run in runs]
        results[f"{name}, accuracy"] = [points[0][1] if points else None for points in last]
    return Comparison({key: values for key, values in settings.items() if len(set(map(str, values))) > 1}, results)


def environment() -> dict[str, Any]:
    """What a result may depend on besides its recipe. No names of users or machines."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git": git_state(),
    }


def git_state() -> dict[str, Any] | None:
    """Of the folder in which the run was started: the commit, and whether files were changed since."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "changed_files": len(changed.stdout.splitlines())}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}{key}.") if isinstance(entry, dict) else {f"{prefix}{key}": entry}
    return flat


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    one, other = _flat(ours), _flat(theirs)
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
