"""The processes of one run: started here by torchrun if nobody started them, and made known to each other.

On one machine `wootz run` starts as many as the recipe's mesh has devices. On many, start them with torchrun on each,
over a shared file system; that they are there already is seen by the environment it sets:

    torchrun --nnodes 8 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m wootz run RECIPE
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist

from wootz.core.errors import ConfigError, UnavailableError
from wootz.training.recipe import MeshSection, Recipe
from wootz.training.restarts import EXIT_CODE, LostError

_PATIENCE = timedelta(days=7)
"""For the first process to read and tokenise the text. A rank that hangs in training is the watchdog's affair."""
_LAST_WORDS = 5
"""Seconds that processes are given to end by themselves once one of them was lost."""


def started_by_torchrun() -> bool:
    return "RANK" in os.environ and "MASTER_ADDR" in os.environ


def start_all(mesh: MeshSection, devices: Sequence[int], arguments: Sequence[str]) -> None:
    """``wootz ARGUMENTS`` in a process for each of this machine's ``devices``; returns when all are done. Raises
    `LostError` if one fails, when the others are stopped."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    here = len(_accelerators()) if mesh.device != "cpu" else mesh.devices
    if here < mesh.devices:
        raise ConfigError(
            f"the mesh has {mesh.devices} devices, and this machine {here}",
            hint="start it on every machine: torchrun --nnodes N --nproc-per-node G … -m wootz run RECIPE",
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(devices))))
    if len(devices) < mesh.devices and mesh.device != "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(_accelerators()[device] for device in devices)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it would say what is said below
    try:
        how = ["--standalone", f"--nproc-per-node={len(devices)}", f"--shutdown-timeout={_LAST_WORDS}"]
        main([*how, "-m", "wootz", *arguments])
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda each: each[1].timestamp)
        raise _lost({rank: failure.exitcode for rank, failure in failures}) from None
    except SignalException as error:
        raise UnavailableError(f"stopped by {error.sigval.name}", hint="the same command goes on") from None


def _lost(codes: dict[int, int]) -> LostError:
    """By exit codes, in order of time. What a watchdog ended comes first, for what it names is killed after that; then
    what was killed, since the others fail because it is gone."""
    if EXIT_CODE in codes.values():
        waiting = next(rank for rank, code in codes.items() if code == EXIT_CODE)
        return LostError(waiting, "waited in vain", blamed=False)
    own = {rank: code for rank, code in codes.items() if code != -signal.SIGTERM} or codes
    rank, code = next(((rank, code) for rank, code in own.items() if code < 0), next(iter(own.items())))
    if code < 0:
        return LostError(rank, f"was ended by signal {-code}")
    return LostError(rank, "failed", fatal=code == ConfigError.exit_code)


@cache
def _accelerators() -> list[str]:
    """Of this machine, by the names under which they were visible when this process was started."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def joined(recipe: Recipe) -> Iterator[Recipe]:
    """In the block, this process is one of the mesh's. Gives the recipe for as many as were started: if
    ``mesh.fewest`` allows it, they may be fewer than it asks for. Nothing happens for a mesh of one. Raises
    `ConfigError` for any other number."""
    mesh, started = recipe.mesh, int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else 1
    if started not in recipe.sizes:
        raise ConfigError(f"the mesh has {mesh.devices} devices, and {started} processes were started for it")
    if started == 1:
        yield recipe.sizes[started]
        return
    if mesh.device != "cpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if mesh.device == "cpu" else "nccl", timeout=_PATIENCE)
    try:
        yield recipe.sizes[started]
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()
