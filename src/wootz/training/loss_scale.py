"""`LossScale`: how float16 trains. Small gradients are zero in it, so the loss is multiplied by a large number before
the backward pass and gradients are divided by it after, in float32 (arXiv 1710.03740). The number is found by trying:
halved, and the step not made, when a gradient overflowed; doubled after `GROWTH_INTERVAL` steps in which none did.

These are the rules of `torch.amp.GradScaler`. It looks for overflows in each gradient that a rank holds; here the norm
of all, which every rank knows and which is needed anyway, says the same to everyone: shards and stages of a pipeline
skip together. Powers of two change no digit of what they scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor


class LossScale:
    GROWTH_INTERVAL = 2000
    SMALLEST = 1.0
    """A gradient that is no number at this scale is not the scale's fault: that is for guards to see to."""

    def __init__(self, *, dynamic: bool) -> None:
        """One that is not dynamic is 1, and stays so."""
        self.dynamic = dynamic
        self.value = 2.0**16 if dynamic else 1.0
        self.good_steps = 0
        """Since the last change."""

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide all gradients by it, in place."""
        if self.dynamic:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(1 / self.value)

    def overflow(self, loss: float, grad_norm: float) -> str | None:
        """Why a step with this norm is not to be made, if gradients overflowed in it; sets the scale of the next. A
        loss that is no number itself overflowed on its way forward, where no scale helps."""
        if not self.dynamic or not math.isfinite(loss):
            return None
        if not math.isfinite(grad_norm):
            if self.value <= self.SMALLEST:
                return None
            self.value, self.good_steps = self.value / 2, 0
            return f"float16 gradients overflowed; the loss is scaled by {self.value:g} now"
        self.good_steps += 1
        if self.good_steps == self.GROWTH_INTERVAL:
            self.value, self.good_steps = self.value * 2, 0
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.good_steps = state["value"], state["good_steps"]
