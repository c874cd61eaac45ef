"""`ParallelTrainer`: the `Trainer`'s loop over a model on many ranks. A step's gradients and their norm are the mesh's
affair (`Parallel`); everything else, callbacks and guards included, is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from wootz.data.batch import Batch, Batches
from wootz.training.parallel.parallelize import Parallel
from wootz.training.trainer import Trainer, TrainerConfig


class ParallelTrainer(Trainer):
    """``batches`` are this reader's share (``parallel.mesh.reader`` of ``layout.num_readers``)."""

    def __init__(
        self,
        parallel: Parallel,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        batches: Batches,
        config: TrainerConfig,
        **others: Any,
    ) -> None:
        super().__init__(parallel.model, optimizer, schedule, batches, config, objective=parallel.objective, **others)
        self.parallel = parallel

    @property
    def peers(self) -> Sequence[int]:
        return self.parallel.mesh.ranks("loss")

    def _backward(self, micro_batches: list[Batch]) -> tuple[float, int]:
        with self.precision():
            loss = self.parallel.backward(micro_batches, self.loss_scale.value)
        own = sum(batch.tokens_BT.numel() for batch in micro_batches)
        return loss, own * self.parallel.mesh.layout.num_readers

    def _clip(self) -> float:
        return self.parallel.clip(self.config.max_grad_norm)
