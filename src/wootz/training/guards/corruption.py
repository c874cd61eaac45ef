"""`CorruptionGuard`: ranks that should agree are compared, since hardware that computes wrongly says nothing.

Every `every` steps each rank computes the very same rows with the weights that all share: the loss, the size of the
states, and of the loss's gradient by them. Where nothing is wrong the figures are equal; a rank off by more than
`TOLERANCE` of the median is named, and the run stops. Start it again without that machine: the last good checkpoint is
there, and fits another number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from wootz.core.errors import WootzError
from wootz.data.batch import Batch
from wootz.models import PackedContext
from wootz.training.trainer import Callback, Trainer, evaluation, world_size


class CorruptionError(WootzError):
    """A rank computes something else than the others."""

    code = "silent_corruption"


class CorruptionGuard(Callback):
    TOLERANCE = 1e-3

    def __init__(
        self,
        every: int,
        *,
        rows: int = 2,
        length: int = 32,
        seed: int = 0,
        suspect: Callable[[list[int]], None] = lambda ranks: None,
    ) -> None:
        self.every, self.rows, self.length, self.seed = every, rows, length, seed
        self.suspect = suspect
        """Is told of the ranks that are named before the run stops."""

    def before_step(self, trainer: Trainer) -> None:
        if world_size() > 1 and trainer.step % self.every == 0:
            check_agreement(self.figures(trainer), self.TOLERANCE, self.suspect)

    def figures(self, trainer: Trainer) -> tuple[float, ...]:
        """Loss, size of the last states, and size of the loss's gradient by them, of rows that all ranks know. No
        gradient of a weight is made: it would be averaged before it could be compared."""
        generator = torch.Generator().manual_seed(self.seed + trainer.step)
        vocab_size: int = getattr(trainer.model, "config").vocab_size  # noqa: B009
        rows = torch.randint(vocab_size, (self.rows, self.length + 1), generator=generator)
        model: Any = trainer.model
        batch = Batch.of(rows.to(trainer.device))
        with evaluation(model):
            with torch.no_grad():
                hidden_TD = model(batch.tokens_BT.flatten(), batch.positions_T, PackedContext(batch.lengths))
            hidden_TD = hidden_TD.detach().requires_grad_()
            loss = F.cross_entropy(model.unembed(hidden_TD), batch.labels_BT.flatten())
            (gradient_TD,) = torch.autograd.grad(loss, hidden_TD)
        return loss.item(), hidden_TD.norm().item(), gradient_TD.norm().item()


def check_agreement(
    figures: tuple[float, ...], tolerance: float, suspect: Callable[[list[int]], None] = lambda ranks: None
) -> None:
    """Raises `CorruptionError`, on every rank, naming those whose figures differ from the median of all."""
    everyones: list[Any] = [None] * world_size()
    dist.all_gather_object(everyones, figures)
    if wrong := disagreeing(everyones, tolerance):
        suspect(list(wrong))
        names = ", ".join(f"rank {number} (off by {off:.1e})" for number, off in wrong.items())
        raise CorruptionError(
            f"{names} computed something else than the others on the same rows",
            hint="take that machine out and resume with the rest",
        )


def disagreeing(everyones: list[tuple[float, ...]], tolerance: float) -> dict[int, float]:
    """Ranks by how far, relative to the median, their worst figure is off; of two that differ nobody can say which is
    wrong, and both are named. A figure that is not a number is infinitely off."""
    middle = [
        median([value for value in values if value == value] or [math.nan]) for values in zip(*everyones, strict=True)
    ]
    off = {
        number: max(
            float("inf") if value != value else abs(value - centre) / max(abs(centre), 1e-12)
            for value, centre in zip(figures, middle, strict=True)
        )
        for number, figures in enumerate(everyones)
    }
    return {number: worst for number, worst in off.items() if worst > tolerance}
