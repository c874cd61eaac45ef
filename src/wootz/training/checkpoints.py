"""`Checkpoints`: where a run stands, on disk as a whole or not at all.

    step_400.tmp/            while it is written
    step_400/                from the rename on: never touched again, until it is one of more than `keep`
        .metadata, __0_0.distcp, __1_0.distcp, …    torch.distributed.checkpoint: each rank's shards
        rank_0.json, rank_1.json, …                 each rank's place in the data, random numbers, callbacks
        manifest.json                               the sha256 and size of every file above

A save copies the state to memory and lets training go on; a thread of each rank writes its own shard and syncs it to
the disk, rank 0 collects the checksums, writes the manifest, syncs the folder, and renames it. Nothing that is being
written has a name that anyone would load, and the last good one is never written over: a kill, a full disk or a crash
at any moment leaves it as it was.

Loading verifies checksums first. A folder with a file that is damaged is named and passed over for the one before it.
Shards are those of `torch.distributed.checkpoint`, so a run goes on with another number of ranks.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

from wootz.core.atomic import sync
from wootz.core.errors import ConfigError
from wootz.training.parallel.state import held
from wootz.training.trainer import Callback, Step, Trainer, rank, world_size

MANIFEST = "manifest.json"
_STEP = re.compile(r"step_(\d+)")


class Checkpoints(Callback):
    """As a callback: saves every ``every`` steps and at the end, keeping the last ``keep``. `restore` goes back."""

    def __init__(self, folder: Path | str, *, every: int, keep: int = 2) -> None:
        self.folder, self.every, self.keep = Path(folder), every, keep
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
        """Its own: a thread must not mix its messages into those of training."""

    def after_step(self, trainer: Trainer, step: Step) -> None:
        if trainer.step % self.every == 0 or trainer.step == trainer.config.steps:
            self.save(trainer)

    def on_end(self, trainer: Trainer) -> None:
        self.wait(trainer.report)

    # --- writing ----------------------------------------------------------------------------------------------

    def save(self, trainer: Trainer) -> None:
        """Returns as soon as the state is copied; waits first for the save before, if it is not done."""
        self.wait(trainer.report)
        tensors, own = _copied(held(_tensors(trainer))), json.dumps(trainer.state_dict() | _numbers(trainer))
        self._writing = self._writer.submit(self._write, trainer.step, tensors, own)

    def wait(self, report: Callable[[str], None]) -> None:
        """Until nothing is being written. A save that failed costs this checkpoint, not the run: it is reported."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except (Exception, CheckpointException) as error:
            good = steps_in(self.folder)
            last = f"the last good one is of step {good[-1]}" if good else "there is none yet"
            report(f"checkpoint not saved: {_reason(error)}; {last}")

    def _write(self, step: int, tensors: dict[str, Any], own: str) -> None:
        target = self.folder / f"step_{step}"
        partial = target.with_name(f"{target.name}.tmp")
        try:
            if rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self._barrier()
            _write_synced(partial / f"rank_{rank()}.json", own)
            with warnings.catch_warnings(action="ignore"):  # that one process is alone is as it should be
                writer = FileSystemWriter(partial, sync_files=True)
                save_sharded(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
            self._finish(partial, target)
        except BaseException:
            if rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _finish(self, partial: Path, target: Path) -> None:
        own = [path for path in partial.iterdir() if re.match(rf"rank_{rank()}\.json|__{rank()}_", path.name)]
        own += [partial / ".metadata"] if rank() == 0 else []
        sums = {path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in own}
        everyones: list[Any] = [sums]
        if self._group is not None:
            everyones = [None] * world_size()
            dist.all_gather_object(everyones, sums, group=self._group)
        if rank() == 0:
            files = {name: entry for each in everyones for name, entry in sorted(each.items())}
            _write_synced(partial / MANIFEST, json.dumps({"world_size": world_size(), "files": files}, indent=2))
            sync(partial)
            shutil.rmtree(target, ignore_errors=True)  # of a run that was taken back behind this step
            os.rename(partial, target)
            sync(self.folder)
            for old in steps_in(self.folder)[: -self.keep]:
                shutil.rmtree(self.folder / f"step_{old}")
        self._barrier()

    def _barrier(self) -> None:
        if self._group is not None:
            dist.barrier(self._group)

    # --- reading ----------------------------------------------------------------------------------------------

    def restore(self, trainer: Trainer, *, keep_data_position: bool = False) -> int | None:
        """Put the trainer where the last good checkpoint stands; returns its step, or None if there is none.

        ``keep_data_position`` reads on from where the data is now, so that what came after the checkpoint is not read
        again. Raises `ConfigError` if checkpoints are there and all of them are damaged.
        """
        self.wait(trainer.report)
        step = self._agreed(last_good(self.folder, trainer.report) if rank() == 0 else None)
        if step is None:
            return None
        folder, batches = self.folder / f"step_{step}", trainer.batches.state_dict()
        own = folder / f"rank_{rank()}.json"
        state = json.loads((own if own.exists() else folder / "rank_0.json").read_text())
        _freeze(trainer, state.get("frozen", []))  # Checkpoints of older versions do not say.
        tensors = _tensors(trainer)
        own_part = held(tensors)
        with warnings.catch_warnings(action="ignore"):
            load_sharded(own_part, storage_reader=FileSystemReader(folder), no_dist=world_size() == 1)
        _put_back(own_part, tensors)
        groups = [group | {"params": names} for group, names in zip(state["groups"], _names(trainer), strict=True)]
        set_model_state_dict(trainer.model, tensors["model"])
        optimizer_state: Any = {"state": tensors["optimizer"], "param_groups": groups}
        set_optimizer_state_dict(trainer.model, trainer.optimizer, optimizer_state)
        trainer.load_state_dict(state)
        if keep_data_position:
            trainer.batches.load_state_dict(batches)
        trainer.optimizer.zero_grad(set_to_none=True)
        return step

    def _agreed(self, step: int | None) -> int | None:
        if self._group is None:
            return step
        shared = [step]
        dist.broadcast_object_list(shared, src=0, group=self._group)
        return shared[0]


def steps_in(folder: Path) -> list[int]:
    """Of the checkpoints that were completed, in order. They may have been damaged since."""
    if not folder.is_dir():
        return []
    found = (_STEP.fullmatch(path.name) for path in folder.iterdir() if (path / MANIFEST).exists())
    return sorted(int(match[1]) for match in found if match)


def last_good(folder: Path, report: Callable[[str], None] = lambda line: None) -> int | None:
    """The newest checkpoint whose files are what their checksums say; the damaged ones are reported."""
    steps = steps_in(folder)
    for step in reversed(steps):
        if (damage := damage_in(folder / f"step_{step}")) is None:
            return step
        report(f"{damage}; going back to the checkpoint before it")
    if steps:
        raise ConfigError(f"{folder}: every checkpoint is damaged", hint="start again in another folder")
    return None


def damage_in(checkpoint: Path) -> str | None:
    """What is wrong with it, naming the file; None if nothing is."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{checkpoint / MANIFEST} cannot be read"
    for name, entry in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{path} has {path.stat().st_size:,} bytes instead of {entry['bytes']:,}"
        if sha256_of(path) != entry["sha256"]:
            return f"{path} does not have the checksum it was written with"
    return None


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensors(trainer: Trainer) -> dict[str, Any]:
    """What is sharded: weights, and the optimiser's tensors, by the names of the weights. The optimiser makes those
    that it has not yet."""
    optimizer = get_optimizer_state_dict(trainer.model, trainer.optimizer)
    return {"model": get_model_state_dict(trainer.model), "optimizer": optimizer["state"]}


def _numbers(trainer: Trainer) -> dict[str, Any]:
    groups: Any = get_optimizer_state_dict(trainer.model, trainer.optimizer)["param_groups"]
    return {
        "groups": [{name: value for name, value in group.items() if name != "params"} for group in groups],
        "frozen": [name for name, parameter in _weights(trainer) if not parameter.requires_grad],
    }


def _freeze(trainer: Trainer, names: list[str]) -> None:
    """Weights that were not trained (`wootz.training.unfreezing`) have no state in a checkpoint, and are to have none
    after it is read."""
    for name, parameter in _weights(trainer):
        parameter.requires_grad_(name not in names)
        if name in names:
            trainer.optimizer.state.pop(parameter, None)


def _weights(trainer: Trainer) -> list[tuple[str, nn.Parameter]]:
    """Without those of nothing, such as the embedding of a pipeline's later stages."""
    return [(name, parameter) for name, parameter in trainer.model.named_parameters() if parameter.numel()]


def _names(trainer: Trainer) -> list[list[str]]:
    groups: Any = get_optimizer_state_dict(trainer.model, trainer.optimizer)["param_groups"]
    return [group["params"] for group in groups]


def _put_back(loaded: dict[str, Any], state: dict[str, Any]) -> None:
    """What was loaded that is no tensor, which is filled in place: a count of steps, a rate that was found."""
    for name, value in loaded.items():
        if isinstance(value, dict):
            _put_back(value, state[name])
        else:
            state[name] = value


def _copied(state: Any) -> Any:
    """The same, of its own memory on the CPU, so that the next update does not change it."""
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    return state.detach().to("cpu", copy=True) if isinstance(state, Tensor) else state


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _reason(error: BaseException) -> str:
    """In the words of the operating system, however deep it is wrapped."""
    causes = [error, *getattr(error, "failures", {}).values()]
    causes = [cause[0] if isinstance(cause, tuple) else cause for cause in causes]
    system = next((cause for cause in causes if isinstance(cause, OSError)), None)
    full = f"[Errno {errno.ENOSPC}]" in str(error) or "No space left" in str(error)
    if full or (system is not None and system.errno == errno.ENOSPC):
        return "no space left on the disk"
    return str(system or error).strip().splitlines()[-1]
