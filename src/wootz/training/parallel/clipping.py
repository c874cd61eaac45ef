"""Gradient clipping when no rank has a whole gradient: by experts, heads, shards and stages.

Every number of a gradient is held by equally many ranks of its stage: by all of them, divided by how many shards its
tensor is cut into. So each rank's sum of squares, weighed by ``shards / ranks of a stage``, adds up over *all* ranks to
the square of the whole norm, whatever a parameter is sharded over; one all-reduce of one number.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float, *, num_stages: int = 1) -> Tensor:
    """Scale all gradients so that their joint 2-norm is ``max_norm`` at most; returns what it was before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    per_stage = dist.get_world_size() // num_stages
    total = torch.zeros((), device=gradients[0].device if gradients else None)
    for gradient in gradients:
        total += _local(gradient).float().square().sum() * (num_shards(gradient) / per_stage)
    dist.all_reduce(total)
    norm = total.sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        _local(gradient).mul_(scale)
    return norm


def num_shards(tensor: Tensor) -> int:
    """Into how many pieces a tensor is cut; copies do not count."""
    if not isinstance(tensor, DTensor):
        return 1
    pieces = 1
    for axis, placement in enumerate(tensor.placements):
        assert not placement.is_partial(), "a gradient that was not summed"
        pieces *= 1 if placement.is_replicate() else tensor.device_mesh.size(axis)
    return pieces


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
