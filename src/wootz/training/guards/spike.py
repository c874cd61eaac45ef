"""`SpikeGuard`: a bad batch is not learned from, and a run that was thrown off goes back.

- A step whose gradient is above `FACTOR` times the median of the last steps' is not made: its batch is skipped.
- If the loss is above what it was (by `MARGIN` nats) and has not come back after `PATIENCE` steps, weights and optimiser
  go back to the last good checkpoint, the learning rate is 0.7 of what it was from then on, and the data goes on from
  where it is: what was read since the checkpoint is not read again (as PaLM's authors did, arXiv 2204.02311).

Only gradients of steps that were made count to the median, so a row of spikes does not become the norm.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

from wootz.training.checkpoints import Checkpoints
from wootz.training.trainer import Callback, Step, Trainer


class SpikeGuard(Callback):
    FACTOR = 5.0
    MARGIN = 1.0
    PATIENCE = 50
    WINDOW = 64
    FEWEST = 10
    """Steps before there is a median to speak of."""
    RATE = 0.7
    MOST_ROLLBACKS = 5

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.norms: deque[float] = deque(maxlen=self.WINDOW)
        self.losses: deque[float] = deque(maxlen=self.WINDOW)
        self.high = 0
        """Steps in a row whose loss is far above the usual."""
        self.rollbacks = 0

    def before_update(self, trainer: Trainer, step: Step) -> str | None:
        if len(self.norms) < self.FEWEST or not math.isfinite(step.grad_norm):
            return None
        usual = median(self.norms)
        if step.grad_norm <= self.FACTOR * usual:
            return None
        return f"gradient norm {step.grad_norm:.3g} is {step.grad_norm / usual:.1f} times the median"

    def after_step(self, trainer: Trainer, step: Step) -> None:
        if step.skipped:
            trainer.report(f"step {step.number}: update skipped, {step.skipped}")
        else:
            self.norms.append(step.grad_norm)
        usual = median(self.losses) if len(self.losses) >= self.FEWEST else math.inf
        if math.isfinite(step.loss) and step.loss <= usual + self.MARGIN:
            self.losses.append(step.loss)
            self.high = 0
            return
        self.high += 1
        if self.high >= self.PATIENCE:
            self._go_back(trainer, step, usual)

    def _go_back(self, trainer: Trainer, step: Step, usual: float) -> None:
        own, factor = self.rollbacks + 1, trainer.rate_factor * self.RATE
        if own > self.MOST_ROLLBACKS:
            raise FloatingPointError(f"the loss did not recover after {self.MOST_ROLLBACKS} rollbacks; see the metrics")
        to = self.checkpoints.restore(trainer, keep_data_position=True)
        if to is None:
            raise FloatingPointError(f"the loss rose to {step.loss:.3g} and there is no checkpoint to go back to")
        trainer.rate_factor, self.rollbacks, self.high = factor, own, 0
        trainer.report(
            f"step {step.number}: loss {step.loss:.3g} stayed above {usual:.3g} for {self.PATIENCE} steps; back to step "
            f"{to}, learning rate at {factor:.2g} of the schedule, data goes on from here"
        )

    def state_dict(self) -> dict[str, Any]:
        numbers = {"high": self.high, "rollbacks": self.rollbacks}
        return {"norms": list(self.norms), "losses": list(self.losses), **numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.norms = deque(state.get("norms", ()), maxlen=self.WINDOW)
        self.losses = deque(state.get("losses", ()), maxlen=self.WINDOW)
        self.high, self.rollbacks = state.get("high", 0), state.get("rollbacks", 0)
