"""A run that dies is started again by itself, and ends with the weights of one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from wootz.core.errors import ConfigError, UnavailableError
from wootz.training.processes import _lost
from wootz.training.recipe import Recipe
from wootz.training.restarts import LostError, keep_running
from wootz.training.runs import RunFolder

# --- the rules --------------------------------------------------------------------------------------------------------


class Deaths:
    """A run whose attempts end as a script says: (step, rank, how), or suspects beside them; then it is through."""

    def __init__(
        self, folder: Path, *script: tuple[int, int, str], suspects: dict[int, list[int]] | None = None
    ) -> None:
        self.run = RunFolder.create(folder, {})
        self.script, self.suspects = list(script), suspects or {}
        self.devices: list[list[int]] = []
        self.pauses: list[float] = []
        self.lines: list[str] = []

    def start(self, devices: list[int], attempt: int) -> None:
        self.devices.append(devices)
        if attempt < len(self.script):
            step, rank, how = self.script[attempt]
            self.run.append("metrics", {"step": step})
            if attempt in self.suspects:
                self.run.suspect(self.suspects[attempt], sure=True)
            raise LostError(rank, how, fatal=how == "refused")

    def keep(self, most: int, sizes: list[int]) -> None:
        keep_running(self.start, self.run, most=most, sizes=sizes, say=self.lines.append, sleep=self.pauses.append)


def test_it_goes_on_with_growing_pauses_until_it_is_through(tmp_path: Path) -> None:
    run = Deaths(tmp_path, (3, 1, "was ended by signal 9"), (8, 0, "failed"), (20, 1, "failed"))
    run.keep(3, [2])
    assert run.devices == [[0, 1]] * 4
    assert run.pauses == [1, 2, 4]
    assert run.lines[0] == "process 1 was ended by signal 9 at step 4; starting again in 1 s (restart 1 of 3)"
    assert [row["line"] for row in run.run.rows("events")] == run.lines


def test_so_many_restarts_and_no_more(tmp_path: Path) -> None:
    run = Deaths(tmp_path, *((step, 0, "failed") for step in range(5)))
    with pytest.raises(LostError, match="process 0 failed"):
        run.keep(2, [1])
    assert len(run.devices) == 3


def test_a_step_that_is_died_at_twice_in_a_row_ends_the_run(tmp_path: Path) -> None:
    run = Deaths(tmp_path, (8, 0, "failed"), (8, 1, "failed"), (8, 0, "failed"))
    with pytest.raises(UnavailableError, match="given up: process 1 failed at step 9, where the run had ended before"):
        run.keep(9, [2])
    assert len(run.devices) == 2


def test_what_a_user_has_to_mend_is_not_tried_again(tmp_path: Path) -> None:
    run = Deaths(tmp_path, (0, 0, "refused"))
    with pytest.raises(LostError):
        run.keep(9, [1])
    assert len(run.devices) == 1


def test_a_rank_that_does_not_come_back_is_done_without(tmp_path: Path) -> None:
    """Lost twice in a row, or named by a guard that is sure of it; as many go on as a batch can be split among."""
    twice = Deaths(tmp_path / "twice", (5, 2, "failed"), (5, 2, "failed"))
    twice.keep(9, [4, 2, 1])
    assert twice.devices == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1]]
    assert "process 2 failed at step 6, and does not come back: 2 of 4 go on" in twice.lines[1]
    named = Deaths(tmp_path / "named", (5, 0, "failed"), suspects={0: [1]})
    named.keep(9, [3, 2])
    assert named.devices == [[0, 1, 2], [0, 2]]
    assert named.lines[0].startswith("process 1 was lost at step 6, and does not come back")
    unsure = Deaths(tmp_path / "unsure", (5, 0, "failed"), (9, 0, "failed"), suspects={0: [0, 1], 1: [0, 1]})
    unsure.keep(9, [2, 1])
    assert unsure.devices == [[0, 1]] * 3


@pytest.mark.parametrize(
    ("codes", "rank", "how", "blamed"),
    [
        ({0: 1, 1: -9}, 1, "was ended by signal 9", True),  # the first failed because the other was gone
        ({0: -15, 1: 1}, 1, "failed", True),  # the first was stopped with the run
        ({0: -9, 1: 75}, 1, "waited in vain", False),  # the first hung, and was killed after the watchdog's word
        ({0: 1, 1: 1}, 0, "failed", True),
    ],
)
def test_who_is_to_blame_is_read_from_exit_codes(codes: dict[int, int], rank: int, how: str, blamed: bool) -> None:
    found = _lost(codes)
    assert (found.rank, found.how, found.blamed, found.fatal) == (rank, how, blamed, False)
    assert _lost({0: 2, 1: -15}).fatal


def recipe_of(**pretrain: Any) -> Recipe:
    mesh = {"data": 4, "fewest": 1}
    settings = {"batch_tokens": 12 * 64, "tokens": 12 * 64 * 5, **pretrain}
    raw = {"name": "x", "depth": 1, "data": {"path": "x"}, "model": {"context": 64}, "mesh": mesh}
    return Recipe.of(raw | {"pretrain": settings}, "test")


@pytest.mark.parametrize("micro", [None, 1])
def test_fewer_ranks_make_the_same_steps(micro: int | None) -> None:
    recipe = recipe_of(micro_batch_rows=micro)
    assert list(recipe.sizes) == ([4, 2, 1] if micro is None else [4, 3, 2, 1])
    for size, fewer in recipe.sizes.items():
        assert fewer.mesh.data == size
        assert fewer.rows_of_a_step == 12
        assert fewer.dial.steps == 5
        assert fewer.dial.micro_batch_rows == recipe.dial.micro_batch_rows
    assert list(Recipe.of(recipe.model_dump(mode="json") | {"mesh": {"data": 4}}, "test").sizes) == [4]


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    words = ["iron", "steel", "water", "fire", "smith", "blade"]
    lines = [" ".join(words[(n * k + k) % 6] for k in range(30)) + f" number {n}." for n in range(300)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (folder / "tiny.toml").write_text(
        f"""
        name = "tiny"
        depth = 2
        stages = ["clean", "tokenize", "pretrain"]
        data = {{ path = "{folder / "text.jsonl"}", held_out = 0.1 }}
        tokenizer.vocab_size = 300
        model = {{ hidden_size = 32, num_heads = 2, context = 32, tie_embeddings = false }}
        mesh.data = 2
        pretrain = {{ tokens = 20480, batch_tokens = 512, checkpoint_every = 4, evaluate_every = 99 }}
        """
    )
    return folder / "tiny.toml"


def started(recipe: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "wootz", "run", str(recipe), "--out", str(out), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)


@pytest.fixture(scope="module")
def alone(recipe: Path) -> RunFolder:
    """Of two processes that nobody disturbs."""
    run = started(recipe, recipe.parent / "alone")
    _, said = run.communicate()
    assert run.returncode == 0, said
    return RunFolder.open(recipe.parent / "alone")


def process_of(parent: int, rank: int) -> int | None:
    for task in Path(f"/proc/{parent}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            try:
                if f"RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text().replace("LOCAL_RANK=", "_"):
                    return child
            except OSError:
                continue
    return None


def steps_made(out: Path) -> int:
    file = out / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def strike(run: subprocess.Popen[str], out: Path, rank: int, how: signal.Signals, when: Callable[[], bool]) -> None:
    while not when():
        assert run.poll() is None, run.stderr and run.stderr.read()
        time.sleep(0.005)
    while (process := process_of(run.pid, rank)) is None:
        time.sleep(0.005)
    os.kill(process, how)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_and_frozen_ranks_leave_no_trace_in_the_weights(recipe: Path, alone: RunFolder, tmp_path: Path) -> None:
    """One rank by SIGKILL, then the other by SIGSTOP, which only the watchdog of its neighbour can see."""
    out = tmp_path / "struck"
    run = started(recipe, out, "--restarts", "3", "--set", "pretrain.hang_seconds=6")
    strike(run, out, 1, signal.SIGKILL, lambda: steps_made(out) > 6)
    events = out / "events.jsonl"
    strike(run, out, 0, signal.SIGSTOP, lambda: events.exists() and steps_made(out) > 20)
    _, said = run.communicate()
    assert run.returncode == 0, said
    struck = RunFolder.open(out)
    lines = [row["line"] for row in struck.rows("events") if "starting again" in row["line"]]
    assert len(lines) == 2
    assert lines[0].startswith("process 1 was ended by signal 9 at step")
    assert lines[1].startswith("process 0 was lost at step")
    assert "rank 0 shows no sign of life" in said
    ours, theirs = (load_file(each.model / "model.safetensors") for each in (struck, alone))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    losses = [[row["loss"] for row in each.rows("metrics")] for each in (struck, alone)]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_rest_goes_on_where_a_rank_does_not_come_back(recipe: Path, alone: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "struck"
    run = started(recipe, out, "--restarts", "3", "--set", "mesh.fewest=1")
    strike(run, out, 1, signal.SIGKILL, lambda: steps_made(out) > 6)
    events = out / "events.jsonl"
    strike(run, out, 1, signal.SIGKILL, lambda: events.exists())  # before it has made a step
    _, said = run.communicate()
    assert run.returncode == 0, said
    struck = RunFolder.open(out)
    lines = [row["line"] for row in struck.rows("events")]
    assert any("and does not come back: 1 of 2 go on" in line for line in lines), lines
    ours, theirs = (load_file(each.model / "model.safetensors") for each in (struck, alone))
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-4
    assert struck.recipe["mesh"]["data"] == 2
    losses = [[row["loss"] for row in each.rows("metrics")] for each in (struck, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_fault_that_stays_is_given_up_in_one_line(recipe: Path, tmp_path: Path) -> None:
    """And one process alone is watched over in the same way; a mistake of the user's is not repeated."""
    out = tmp_path / "struck"
    one = ("--set", "mesh.data=1", "--set", 'stages=["clean","tokenize","pretrain"]')
    run = started(recipe, out, "--restarts", "9", *one)
    for _ in range(2):
        strike(run, out, 0, signal.SIGKILL, lambda: process_of(run.pid, 0) is not None and not out.exists())
        while process_of(run.pid, 0) is not None:
            time.sleep(0.005)
    _, said = run.communicate()
    assert run.returncode != 0
    assert "given up: process 0 was ended by signal 9 before the first step, where the run had ended before" in said
    assert "Traceback" not in said
    wrong = started(recipe, tmp_path / "wrong", "--restarts", "9", *one, "--set", "data.path=nowhere")
    _, said = wrong.communicate()
    assert "starting again" not in said
    assert wrong.returncode != 0


def test_a_number_of_processes_that_was_not_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from wootz.training.processes import joined

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="the mesh has 4 devices, and 3 processes were started"):
        with joined(recipe_of()):
            pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined(recipe_of()) as recipe:
        assert recipe.mesh.data == 1
