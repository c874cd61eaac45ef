"""`CurvatureRefresh`: in a trainer's loop, what Sophia divides by."""

from __future__ import annotations

from wootz.training.fit import predictions
from wootz.training.optimizers import refresh_curvature
from wootz.training.trainer import Callback, Step, Trainer


class CurvatureRefresh(Callback):
    """Estimates it anew when it is due, from the step's first micro-batch. For other optimisers it does nothing."""

    def before_update(self, trainer: Trainer, step: Step) -> str | None:
        refresh_curvature(trainer.optimizer, lambda: predictions(trainer.model, trainer.micro_batches[0]))  # pyright: ignore[reportArgumentType]
        return None
