"""`parallelize`: a model of one process becomes one of many, and trains by the same few lines.

    parallel = parallelize(model, Layout(shard=4, tensor=2))     # on each of 8 ranks, the same model
    optimizer = build_optimizer(parallel.model, …)
    loss = parallel.backward([batch])                            # this reader's batches; gradients lie in .grad
    norm = parallel.clip(1.0)
    optimizer.step()

Nothing in a model's files knows of this: parameters become DTensors and collectives hang on modules as hooks. What
comes out equals the one process, loss and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from wootz.core.errors import ConfigError
from wootz.data.batch import IGNORED, Batch
from wootz.models.blocks.moe import MoE
from wootz.models.decoder import Decoder
from wootz.training.fit import language_loss
from wootz.training.parallel.clipping import clip_gradients
from wootz.training.parallel.context import SpreadText, check_spreads
from wootz.training.parallel.experts import spread_experts
from wootz.training.parallel.layout import Layout, Mesh
from wootz.training.parallel.pipeline import Pipeline, Stage, weighed
from wootz.training.parallel.replicas import Replica
from wootz.training.parallel.sharding import shard
from wootz.training.parallel.taken_apart import take_apart
from wootz.training.parallel.tensor import cut_by_tensor

Objective = Callable[..., Tensor]
"""``objective(model, batch)``: the mean over the batch's asked labels."""


class Parallel:
    """A model on the ranks of a mesh. ``model`` holds this rank's parameters, under the names of one process."""

    def __init__(self, model: Decoder, mesh: Mesh, objective: Objective) -> None:
        layout = mesh.layout
        self.model, self.mesh, self.objective = model, mesh, objective
        self._spread = SpreadText(mesh["context"].get_group()) if layout.context > 1 else None
        self._pipeline: Pipeline | None = None
        take_apart(model)
        root: torch.nn.Module = model
        if layout.pipeline > 1:
            stage = root = Stage(model, mesh.rank("pipeline"), layout.pipeline, self._spread)
            self._pipeline = Pipeline(stage, mesh, objective)
        elif self._spread is not None:
            model.register_forward_pre_hook(self._spread.take)
            model.register_forward_hook(self._spread.give)
        if layout.expert > 1:
            spread_experts(model, mesh["expert"])
        if layout.tensor > 1:
            cut_by_tensor(model, mesh["tensor"])
        self._replica = Replica(model, mesh["shard"].get_group()) if layout.zero == 1 else None
        if self._replica is None:
            shard(root, model, mesh)
        self._root = root

    def backward(self, batches: Sequence[Batch], loss_scale: float = 1.0) -> float:
        """Add up the gradients of the mean loss over all labels of these batches, on all ranks, times ``loss_scale``;
        returns that mean.

        Every reader is given batches of its own, equally many and of one shape; ranks that are not readers of their
        own are given their reader's.
        """
        own = batches if self._spread is None else [self._spread.asked(batch) for batch in batches]
        asked = sum(int((batch.labels_BT != IGNORED).sum()) for batch in own)
        total = torch.tensor(asked, device=self.mesh.device)
        dist.all_reduce(total, group=self.mesh["loss"].get_group())
        num_asked = int(total) / loss_scale
        loss = torch.zeros((), device=self.mesh.device)
        for number in range(len(batches)):
            with self._summing(number == len(batches) - 1):
                if self._pipeline is not None:
                    loss += self._pipeline.backward(batches[number], num_asked)
                else:
                    part = weighed(self.objective, self._replica or self.model, own[number], num_asked)
                    part.backward()
                    loss += part.detach()
        dist.all_reduce(loss)
        return loss.item() / loss_scale / self.mesh.layout.tensor

    def _summing(self, now: bool) -> AbstractContextManager[Any]:
        """In the block gradients are summed over ranks, or only added up on each."""
        if self._replica is not None and not now:
            return self._replica.not_yet()
        if isinstance(self._root, FSDPModule):
            self._root.set_requires_gradient_sync(now)
        return nullcontext()

    def clip(self, max_norm: float) -> float:
        """Scale all gradients to a joint norm of ``max_norm`` at most; returns what it was."""
        return clip_gradients(self.model.parameters(), max_norm, num_stages=self.mesh.layout.pipeline).item()


def parallelize(
    model: Decoder,
    layout: Layout,
    objective: Objective = language_loss,
    *,
    device: torch.device | str = "cpu",
) -> Parallel:
    """Cut ``model``, which every rank has built alike, in place. Needs a default process group of the layout's size.
    Raises `ConfigError` for what a layout cannot be applied to."""
    if layout.expert > 1 and not any(isinstance(module, MoE) for module in model.modules()):
        raise ConfigError("expert parallelism, but the model has no experts")
    if layout.context > 1:
        check_spreads(model)
    return Parallel(model, Mesh(layout, torch.device(device)), objective)
