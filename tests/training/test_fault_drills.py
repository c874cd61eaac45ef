"""Fault drills: each fault is made on purpose, and ends as it should, with one clear line."""

from __future__ import annotations

import errno
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Notes, join, small_model, small_trainer, start, whole_weights

from wootz.core.errors import BadRequestError, ConfigError
from wootz.data.documents import Source, read_documents
from wootz.training import checkpoints as checkpoints_module
from wootz.training.checkpoints import Checkpoints, damage_in, steps_in
from wootz.training.guards.chaos import Chaos
from wootz.training.guards.corruption import CorruptionError, CorruptionGuard, disagreeing
from wootz.training.guards.finite import FiniteGuard
from wootz.training.guards.health import HealthMonitor, singular_ratio
from wootz.training.guards.spike import SpikeGuard
from wootz.training.guards.straggler import advice_on
from wootz.training.guards.watchdog import EXIT_CODE, Watchdog
from wootz.training.runs import RunFolder
from wootz.training.trainer import Callback, Step, Trainer, rank


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def told(trainer: Trainer) -> list[str]:
    lines: list[str] = []
    trainer.report = lines.append
    return lines


# --- spikes -----------------------------------------------------------------------------------------------------------


class LargeGradient(Callback):
    """A batch whose gradient is far too large, at one step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def before_update(self, trainer: Trainer, step: Step) -> str | None:
        if step.number == self.at:
            step.grad_norm *= 20
        return None


def test_a_spiking_batch_is_skipped_and_the_weights_stay_as_they_were(tmp_path: Path) -> None:
    before, after = {}, {}

    class Look(Callback):
        def before_step(self, trainer: Trainer) -> None:
            if trainer.step in (15, 16):
                (before if trainer.step == 15 else after).update(whole_weights(trainer))

    guard = SpikeGuard(Checkpoints(tmp_path, every=100))
    trainer = small_trainer(LargeGradient(15), guard, Look(), notes := Notes(), steps=20)
    lines = told(trainer)
    trainer.run()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [step.number for step in notes.steps if step.skipped] == [15]
    assert len(lines) == 1
    assert lines[0].startswith("step 15: update skipped, gradient norm")


def test_a_loss_that_stays_high_takes_the_run_back_at_a_lower_rate_without_the_same_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpikeGuard, "PATIENCE", 5)
    monkeypatch.setattr(SpikeGuard, "MARGIN", 0.15)  # so small a model has little to lose
    monkeypatch.setattr(SpikeGuard, "FACTOR", math.inf)  # only the second defence
    checkpoints = Checkpoints(tmp_path, every=10)
    guard = SpikeGuard(checkpoints)
    trainer = small_trainer(Chaos({22: "spike"}), guard, checkpoints, notes := Notes(), steps=40)
    lines = told(trainer)
    trainer.run()
    (line,) = [line for line in lines if "back to step" in line]
    assert "back to step 20, learning rate at 0.7" in line
    assert trainer.rate_factor == pytest.approx(0.7)
    numbers = [step.number for step in notes.steps]
    assert numbers[:27] == list(range(27))
    assert numbers[27:] == list(range(20, 40))
    assert trainer.batches.step == len(numbers)  # type: ignore[attr-defined]  every batch was read once
    assert max(notes.losses[28:]) < max(notes.losses[22:27])


# --- not a number -----------------------------------------------------------------------------------------------------


def test_a_number_that_is_none_is_traced_to_its_weight_and_kept_out() -> None:
    trainer = small_trainer(Chaos({5: "nan"}), FiniteGuard(), notes := Notes(), steps=8)
    lines = told(trainer)
    trainer.report = lines.append
    trainer.run()
    reason = notes.steps[5].skipped
    assert reason is not None
    assert "rank 0: first in the output of" in reason
    assert "weight holds one" in reason
    assert all(torch.isfinite(weight).all() for weight in whole_weights(trainer).values())


def _nan_in_one_rank(folder: Path) -> None:
    notes = Notes()
    guard = FiniteGuard()
    fault = _WrongOutput(at=3, factor=math.nan) if rank() == 1 else Callback()
    trainer = small_trainer(fault, guard, notes, steps=6)
    trainer.run()
    (folder / f"reason_{rank()}").write_text(str(notes.steps[3].skipped))
    finite = all(torch.isfinite(weight).all() for weight in whole_weights(trainer).values())
    (folder / f"finite_{rank()}").write_text(str(bool(finite)))


class _WrongOutput(Callback):
    """From one step on, or in it alone, the second layer's attention is multiplied by something."""

    def __init__(self, at: int, factor: float, *, stays: bool = False) -> None:
        self.at, self.factor, self.stays = at, factor, stays
        self._hook: Any = None

    def before_step(self, trainer: Trainer) -> None:
        if trainer.step == self.at:
            layer = trainer.model.get_submodule("layers.1.mixer")
            self._hook = layer.register_forward_hook(lambda module, inputs, output: output * self.factor)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        if self._hook is not None and not self.stays:
            self._hook.remove()


def test_the_rank_that_computed_no_number_is_named_by_all(tmp_path: Path) -> None:
    assert join(start(2, _nan_in_one_rank, tmp_path)) == [0, 0]
    for number in (0, 1):
        reason = (tmp_path / f"reason_{number}").read_text()
        assert reason == "not a number; rank 1: first in the output of layers.1.mixer"
        assert (tmp_path / f"finite_{number}").read_text() == "True"


# --- ranks that disagree, or stand still ------------------------------------------------------------------------------


def _corrupt(folder: Path) -> None:
    fault = _WrongOutput(at=4, factor=30.0, stays=True) if rank() == 1 else Callback()
    trainer = small_trainer(CorruptionGuard(every=2), fault, steps=12)
    try:
        trainer.run()
    except CorruptionError as error:
        (folder / f"{rank()}").write_text(f"{trainer.step} {error}")


def test_a_rank_that_computes_wrongly_stops_the_run(tmp_path: Path) -> None:
    join(start(2, _corrupt, tmp_path))
    for number in (0, 1):
        step, _, message = (tmp_path / str(number)).read_text().partition(" ")
        assert int(step) == 6  # the first look after it began
        assert "computed something else than the others" in message


def test_of_three_ranks_the_wrong_one_is_named() -> None:
    assert disagreeing([(1.0, 5.0), (1.0, 5.0), (1.0, 5.1)], 1e-3).keys() == {2}
    assert disagreeing([(1.0,), (1.0005,), (1.0,)], 1e-3) == {}
    assert disagreeing([(1.0,), (math.nan,), (1.0,)], 1e-3).keys() == {1}


def test_a_slow_rank_is_named_with_advice() -> None:
    assert advice_on([100.0, 99.0, 101.0, 98.5], 0.03) is None
    line = advice_on([100.0, 99.0, 101.0, 80.0], 0.03)
    assert line is not None
    assert "rank 3 by 20%" in line


def _hang(folder: Path) -> None:
    trainer = small_trainer(Watchdog(folder / "beats", timeout=6.0), Notes(folder / "losses", 0.01), steps=100_000)
    trainer.run()


def test_a_hung_rank_is_found_named_and_ends_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    processes = start(2, _hang, tmp_path)
    while processes[0].is_alive() and not (tmp_path / "losses").exists():
        time.sleep(0.02)
    os.kill(processes[1].pid, signal.SIGSTOP)
    processes[0].join(60)
    os.kill(processes[1].pid, signal.SIGKILL)
    join(processes)
    assert processes[0].exitcode == EXIT_CODE
    assert "rank 0: no step for 6 seconds; rank 1 shows no sign of life" in capfd.readouterr().err
    stacks = (tmp_path / "beats" / "stacks_0.txt").read_text()
    assert "make_step" in stacks


# --- disks ------------------------------------------------------------------------------------------------------------


def _run_with_checkpoints(folder: Path, steps: int = 10, every: int = 5) -> tuple[Trainer, Checkpoints, list[str]]:
    checkpoints = Checkpoints(folder, every=every)
    trainer = small_trainer(checkpoints, steps=steps)
    return trainer, checkpoints, told(trainer)


def test_a_full_disk_costs_a_checkpoint_and_neither_the_run_nor_the_last_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoints_module._write_synced

    def full(path: Path, text: str) -> None:
        if "step_10" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(checkpoints_module, "_write_synced", full)
    trainer, _, lines = _run_with_checkpoints(tmp_path, steps=15)
    trainer.run()
    assert lines == ["checkpoint not saved: no space left on the disk; the last good one is of step 5"]
    assert steps_in(tmp_path) == [5, 15]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_corrupt_shard_is_named_and_the_checkpoint_before_it_used(tmp_path: Path) -> None:
    trainer, _, _ = _run_with_checkpoints(tmp_path)
    trainer.run()
    shard = tmp_path / "step_10" / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    trainer, checkpoints, lines = _run_with_checkpoints(tmp_path)
    assert checkpoints.restore(trainer) == 5
    assert len(lines) == 1
    assert f"{shard} does not have the checksum" in lines[0]


def test_damage_is_told_apart(tmp_path: Path) -> None:
    trainer, checkpoints, _ = _run_with_checkpoints(tmp_path, steps=5)
    trainer.run()
    folder = tmp_path / "step_5"
    assert damage_in(folder) is None
    (folder / "__0_0.distcp").write_bytes(b"short")
    assert "has 5 bytes instead of" in str(damage_in(folder))
    (folder / "__0_0.distcp").unlink()
    assert "is missing" in str(damage_in(folder))
    with pytest.raises(ConfigError, match="every checkpoint is damaged"):
        checkpoints.restore(trainer)


def test_what_was_being_written_when_killed_is_never_loaded(tmp_path: Path) -> None:
    trainer, _, _ = _run_with_checkpoints(tmp_path)
    trainer.run()
    os.rename(tmp_path / "step_10", tmp_path / "step_10.tmp")
    trainer, checkpoints, _ = _run_with_checkpoints(tmp_path)
    assert checkpoints.restore(trainer) == 5


def test_a_truncated_source_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "whole"}\n{"text": "cut o')
    with pytest.raises(BadRequestError, match=r"text\.jsonl: line 2 is not valid JSON"):
        list(read_documents(Source(name="text", path=str(file))))


# --- health -----------------------------------------------------------------------------------------------------------


def _looked_at(model: Any, folder: Path, steps: int = 20) -> tuple[HealthMonitor, dict[str, Any], list[str]]:
    run = RunFolder.create(folder, {"name": "test"})
    monitor = HealthMonitor(run, 64, every=10)
    trainer = small_trainer(monitor, steps=steps, model=model)
    lines = told(trainer)
    trainer.run()
    return monitor, run.rows("health")[-1], lines


def test_a_healthy_run_raises_no_alarm(tmp_path: Path) -> None:
    _, figures, lines = _looked_at(small_model(), tmp_path / "run")
    assert lines == []
    assert len(figures["activations"]) == len(figures["attention_entropy"]) == 2
    assert all(0.3 < entropy <= 1.0 for entropy in figures["attention_entropy"])
    assert all(0 < ratio < 0.1 for ratio in figures["update_ratio"].values())


def test_a_collapsed_embedding_is_seen(tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.embedding.weight.add_(torch.randn(64, 1) @ torch.randn(1, 16) * 5)
    assert singular_ratio(model.embedding.weight) > 10
    _, _, lines = _looked_at(model, tmp_path / "run")
    assert any("embedding collapsed" in line for line in lines)


def test_attention_on_single_tokens_growing_gradients_and_a_stuck_loss_are_seen(tmp_path: Path) -> None:
    monitor = HealthMonitor(RunFolder.create(tmp_path / "run", {}), 64)
    healthy: dict[str, Any] = {
        "update_ratio": {"layer 0": 0.01}, "activations": [1.0], "attention_entropy": [0.5],
        "embedding_ratio": 2.0, "grad_norms": {}, "clip_ratio": 0.0, "loss": 2.0,
    }  # fmt: skip
    assert monitor.alarms(healthy) == []
    monitor.grad_history, monitor._made = {"layer 0": [1.0, 2.0, 4.0, 8.0]}, 300
    sick = healthy | {"attention_entropy": [0.001], "activations": [20.0], "loss": math.log(64)}
    sick |= {"update_ratio": {"layer 0": 0.5}}
    found = " ".join(monitor.alarms(sick))
    for word in (
        "attention collapsed",
        "gradients of layer 0 grow",
        "nothing is learned",
        "activations grow",
        "too large",
    ):
        assert word in found
