"""The processes of one engine, and how they find each other.

By default the engine process starts the other ranks itself, on this machine, and they meet at a free port of the
loopback. Where torchrun has started all of them (``RANK`` and ``WORLD_SIZE`` are set), on one machine or several, they
meet where it says. Tensors on a GPU go by NCCL, all else by gloo.

A child is on the leash: it ends with the engine process. The other way round, an engine that has lost a rank cannot go
on, and `Ranks.watch` tells it so at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from wootz.core import ConfigError, EngineConfig

PATIENCE = timedelta(days=365)
"""A rank without work waits; that its peers are gone it learns from their connections, not from a clock."""
START_SECONDS = 600.0

LOOPBACK = "127.0.0.1"


class Ranks:
    """The first rank's view: a store that all ranks meet at, and the children, if it started them."""

    def __init__(self, path: Path, config: EngineConfig) -> None:
        self.num_ranks = config.num_ranks
        self.children: list[subprocess.Popen[bytes]] = []
        if under_torchrun():
            if (size := int(os.environ["WORLD_SIZE"])) != self.num_ranks:
                raise ConfigError(f"torchrun started {size} processes, but the engine is to have {self.num_ranks}")
            # Its agent keeps the store, unless somebody has set the variables by hand.
            self.store = _store(is_master=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True")
            return
        self.store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
        command = [sys.executable, "-m", "wootz.engine.parallel.worker", str(path), config.model_dump_json()]
        for rank in range(1, self.num_ranks):
            environ = {
                "MASTER_ADDR": LOOPBACK,
                "MASTER_PORT": str(self.store.port),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(self.num_ranks),
            }
            child = subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | _loopback() | environ)
            self.children.append(child)
        os.environ.update(_loopback())

    def meet(self) -> None:
        """Wait until all ranks have loaded their share, and make the process group. Raises `ConfigError` if one of
        them gives up."""
        others = [f"loaded/{rank}" for rank in range(1, self.num_ranks)]
        give_up = time.monotonic() + START_SECONDS
        while not self.store.check(others):
            dead = [rank for rank, child in enumerate(self.children, 1) if child.poll() is not None]
            if dead or time.monotonic() > give_up:
                self.end()
                which = f"rank {dead[0]} ended" if dead else "a rank does not answer"
                raise ConfigError(f"the engine's ranks do not start: {which}", hint="the reason is above")
            time.sleep(0.02)
        join(self.store, 0, self.num_ranks)

    def watch(self, on_loss: Callable[[str], None]) -> None:
        """Have ``on_loss`` called, from another thread, when a child ends by itself."""

        def wait(rank: int, child: subprocess.Popen[bytes]) -> None:
            code = child.wait()
            on_loss(f"rank {rank} ended (code {code})")

        for rank, child in enumerate(self.children, 1):
            threading.Thread(target=wait, args=(rank, child), name=f"rank {rank}", daemon=True).start()

    def end(self) -> None:
        """End the children now."""
        for child in self.children:
            child.kill()
        for child in self.children:
            child.wait()
            if child.stdin is not None:
                child.stdin.close()


def under_torchrun() -> bool:
    return "WORLD_SIZE" in os.environ and "MASTER_PORT" in os.environ


def loaded(rank: int, num_ranks: int) -> None:
    """From a rank but the first: its share is loaded, and it joins the group."""
    store = _store(is_master=False)
    store.set(f"loaded/{rank}", "")
    join(store, rank, num_ranks)


def join(store: Store, rank: int, num_ranks: int) -> None:
    backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() else "gloo"
    prefixed = PrefixStore("engine", store)
    dist.init_process_group(backend, store=prefixed, rank=rank, world_size=num_ranks, timeout=PATIENCE)


def _store(*, is_master: bool) -> TCPStore:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=is_master, wait_for_workers=False)


def _loopback() -> dict[str, str]:
    """Have gloo talk over the loopback, where it would otherwise look up this machine's name."""
    return {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
