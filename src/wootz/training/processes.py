"""The processes of one run: started here by torchrun if nobody started them, and made known to each other.

On one machine `wootz run` starts as many as the recipe's mesh has devices. On many, start them with torchrun on each,
over a shared file system; that they are there already is seen by the environment it sets:

    torchrun --nnodes 8 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m wootz run RECIPE
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from wootz.core.errors import ConfigError, UnavailableError
from wootz.training.recipe import MeshSection

_PATIENCE = timedelta(days=7)
"""For the first process to read and tokenise the text. A rank that hangs in training is the watchdog's affair."""


def started_by_torchrun() -> bool:
    return "RANK" in os.environ and "MASTER_ADDR" in os.environ


def start_all(mesh: MeshSection, arguments: Sequence[str]) -> None:
    """``wootz ARGUMENTS`` in as many processes as the mesh has devices; returns when all are done, and raises if one
    fails."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    here = torch.cuda.device_count() if mesh.device != "cpu" else mesh.devices
    if here < mesh.devices:
        raise ConfigError(
            f"the mesh has {mesh.devices} devices, and this machine {here}",
            hint="start it on every machine: torchrun --nnodes N --nproc-per-node G … -m wootz run RECIPE",
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // mesh.devices)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it would say what is said below
    try:
        main(["--standalone", f"--nproc-per-node={mesh.devices}", "-m", "wootz", *arguments])
    except ChildFailedError as error:
        first, failure = error.get_first_failure()
        how = f"was ended by signal {-failure.exitcode}" if failure.exitcode < 0 else "failed"
        raise UnavailableError(
            f"process {first} of the mesh {how}, and the others were stopped",
            hint="what it said is above; the same command goes on from the last checkpoint",
        ) from None


@contextmanager
def joined(mesh: MeshSection) -> Iterator[None]:
    """In the block, this process is one of the mesh's. Nothing happens for a mesh of one. Raises `ConfigError` if
    torchrun started another number of them."""
    if mesh.devices != (started := int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else 1):
        raise ConfigError(f"the mesh has {mesh.devices} devices, and {started} processes were started for it")
    if mesh.devices == 1:
        yield
        return
    if mesh.device != "cpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if mesh.device == "cpu" else "nccl", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()
