"""How many ranks each axis of a run has, and the device mesh that follows.

Axes from the outermost, whose ranks are far apart and speak little, to the innermost, whose ranks sit in one machine
and speak in every layer:

    pipeline → replicate → shard (of which ``expert`` are neighbours) → context → tensor

Every rank of ``replicate`` and ``shard`` reads batches of its own; those of ``pipeline``, ``context`` and ``tensor``
work on the same ones. Parameters are sharded over ``shard`` and ``context`` together, since both hold whole layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from wootz.core.errors import ConfigError
from wootz.models.blocks.sizes import check_sizes

Schedule = Literal["gpipe", "1f1b"]
Zero = Literal[1, 2, 3]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of the axes; their product, without ``expert``, is the number of ranks."""

    pipeline: int = 1
    replicate: int = 1
    """Copies of a sharded model (HSDP), for when sharding over all machines is more than the network bears."""
    shard: int = 1
    """Data parallelism, which keeps of what ``zero`` says only a share on each rank."""
    context: int = 1
    tensor: int = 1
    """Tensor parallelism, always with sequence parallelism between the cut parts."""
    expert: int = 1
    """How many of the ``shard`` ranks share out the experts."""
    schedule: Schedule = "1f1b"
    micro_batches: int | None = None
    """Of a pipeline; None: as many as a batch has rows."""
    compute_dtype: torch.dtype | None = None
    """What parameters are gathered and computed in; they are kept, and gradients summed, in their own dtype, which is
    float32."""
    zero: Zero = 3
    """What ``shard`` cuts (arXiv 1910.02054). 1: the optimiser's state; 2: gradients as well, and parameters are
    gathered once for a forward and its backward pass; 3: parameters as well, which are gathered for each. Stages of a
    pipeline keep what they have gathered."""

    def __post_init__(self) -> None:
        check_sizes(self, "pipeline", "replicate", "shard", "context", "tensor", "expert")
        if self.shard % self.expert:
            raise ConfigError(f"expert = {self.expert} does not divide shard = {self.shard}")
        if self.zero == 1 and self.num_ranks * self.expert > self.shard:
            raise ConfigError("zero = 1 goes with shard, and with no other axis", hint="zero = 2 keeps nearly as much")

    @property
    def num_ranks(self) -> int:
        return self.pipeline * self.replicate * self.shard * self.context * self.tensor

    @property
    def num_readers(self) -> int:
        """Ranks with batches of their own."""
        return self.replicate * self.shard


AXES = ("pipeline", "replicate", "outer", "expert", "context", "tensor")

SPOKEN = ("tensor", "context", "expert", "expert_shard", "shard", "replicate", "pipeline", "loss")
"""Groups of ranks that talk to each other."""


class Mesh:
    """The ranks of a `Layout`: ``mesh["tensor"]`` are this rank's neighbours along an axis, as a `DeviceMesh`.

    Besides the axes there are ``shard`` (over which dense parameters are cut), ``expert_shard`` (experts' parameters),
    and ``loss`` (all ranks whose losses are summed).
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        if dist.get_world_size() != layout.num_ranks:
            raise ConfigError(
                f"the layout is for {layout.num_ranks} ranks, and there are {dist.get_world_size()}",
                hint="pipeline * replicate * shard * context * tensor must be the number of processes",
            )
        self.layout, self.device = layout, device
        sizes = (
            layout.pipeline, layout.replicate, layout.shard // layout.expert, layout.expert, layout.context,
            layout.tensor,
        )  # fmt: skip
        root = init_device_mesh(device.type, sizes, mesh_dim_names=AXES)
        self._meshes = {name: root[name] for name in AXES}
        for name, parts in {
            "shard": ("outer", "expert", "context"),
            "expert_shard": ("outer", "context"),
            "loss": ("replicate", "outer", "expert", "context"),
        }.items():
            self._meshes[name] = root[parts]._flatten(name)
        if layout.replicate > 1:
            # Two-dimensional: sums over copies come after sums over shards.
            self._meshes["shard"] = root["replicate", "shard"]
            self._meshes["expert_shard"] = root["replicate", "expert_shard"]

    def __getitem__(self, name: str) -> DeviceMesh:
        return self._meshes[name]

    def rank(self, axis: str) -> int:
        return self[axis].get_local_rank()

    @property
    def reader(self) -> int:
        """Which of the layout's ``num_readers`` shares of each global batch is this rank's."""
        outer = self.rank("replicate") * (self.layout.shard // self.layout.expert) + self.rank("outer")
        return outer * self.layout.expert + self.rank("expert")

    def ranks(self, axis: str) -> tuple[int, ...]:
        """Global ranks along an axis, this one among them."""
        mesh = self[axis] if self[axis].ndim == 1 else self[axis][axis]
        return tuple(mesh.mesh.flatten().tolist())

    def name_of(self, ranks: tuple[int, ...]) -> str:
        """What these ranks are to this one: the first of ``SPOKEN`` that they are, for axes may coincide."""
        return next((axis for axis in SPOKEN if self.ranks(axis) == ranks), "world")
