"""`count_traffic`: what this rank says to others while some code runs, by axis of the mesh and kind of collective.

Bytes are what a ring sends from one rank: ``(n - 1)`` times a share that is gathered, ``(n - 1) / n`` of what is
scattered by sums, twice that of what is summed everywhere, and whatever leaves the rank otherwise. It is counted where
PyTorch dispatches the operation, so it is what was done and not what was meant (`CommDebugMode` counts the same
operations, without sizes or axes).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group  # pyright: ignore[reportPrivateImportUsage]
from torch.utils._python_dispatch import TorchDispatchMode

from wootz.training.parallel.layout import Mesh


@dataclass
class Traffic:
    calls: int = 0
    bytes: float = 0.0


class CountedTraffic(TorchDispatchMode):
    """``with CountedTraffic(mesh) as counted: …``; then ``counted.by_axis["shard", "all_gather"].bytes``. Collectives
    in a group of one rank are not counted: nothing is sent."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self.by_axis: dict[tuple[str, str], Traffic] = defaultdict(Traffic)
        self._mesh = mesh

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count(func._schema.name.partition("::")[2], args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        kind = _KINDS.get(name)
        if kind is None:
            return
        group = next(found for arg in args if (found := _group(arg)) is not None)
        size, rank = dist.get_world_size(group), dist.get_rank(group)
        if size == 1:
            return
        # Of a pair (output, input), as c10d's in-place operations take them, the input is what is sent.
        tensors = [x for arg in args for x in (arg if isinstance(arg, list) else [arg]) if isinstance(x, Tensor)]
        sent = tensors[1] if name in ("_allgather_base_", "_reduce_scatter_base_", "alltoall_base_") else tensors[0]
        entry = self.by_axis[self._mesh.name_of(tuple(dist.get_process_group_ranks(group))), kind]
        entry.calls += 1
        match kind:
            case "all_gather":
                entry.bytes += sent.nbytes * (size - 1)
            case "reduce_scatter":
                entry.bytes += sent.nbytes * (size - 1) / size
            case "all_reduce":
                entry.bytes += 2 * sent.nbytes * (size - 1) / size
            case "all_to_all":
                splits = next((arg for arg in reversed(args) if isinstance(arg, list) and arg), None)
                stays = len(sent) / size if splits is None else splits[rank]
                entry.bytes += sent.nbytes * (1 - stays / max(1, len(sent)))
            case _:
                entry.bytes += sent.nbytes


_KINDS = {
    "_allgather_base_": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "allreduce_": "all_reduce",
    "all_reduce": "all_reduce",
    "alltoall_base_": "all_to_all",
    "send": "send",
}  # fmt: skip


def _group(arg: Any) -> dist.ProcessGroup | None:
    if isinstance(arg, str):
        try:
            return _resolve_process_group(arg)  # pyright: ignore[reportArgumentType]
        except (RuntimeError, KeyError, ValueError):
            return None
    if isinstance(arg, torch.ScriptObject):
        try:
            return dist.ProcessGroup.unbox(arg)
        except (RuntimeError, TypeError):
            return None
    return arg if isinstance(arg, dist.ProcessGroup) else None
