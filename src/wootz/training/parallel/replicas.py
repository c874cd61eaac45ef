"""Replicas: each rank has the whole model and a batch of its own; gradients are summed over ranks while the backward
pass is still under way (PyTorch's DistributedDataParallel). Only the optimiser's state is cut, which is ZeRO-1
(`wootz.training.optimizers.sharded`).

Gradients are summed and not averaged, as everywhere here: each rank weighs its loss by its share of the labels.
"""

# No `from __future__ import annotations`: PyTorch looks at the types that a communication hook is annotated with.

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from wootz.models.context import PackedContext
from wootz.models.decoder import Decoder


class Replica:
    """Called like the model; what is computed so has its gradients summed."""

    def __init__(self, model: Decoder, group: dist.ProcessGroup) -> None:
        self._model = DistributedDataParallel(
            model, process_group=group, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True
        )
        self._model.register_comm_hook(group, _summed)
        self.unembed, self.config, self.head = model.unembed, model.config, model.head

    def __call__(self, token_ids_T: Tensor, positions_T: Tensor, context: PackedContext) -> Tensor:
        return self._model(token_ids_T, positions_T, context)

    def not_yet(self) -> AbstractContextManager[Any]:
        """In the block gradients are added up on this rank alone."""
        return self._model.no_sync()


def _summed(
    group: dist.ProcessGroup,
    bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])
