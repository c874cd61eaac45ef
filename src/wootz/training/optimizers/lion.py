"""Lion (arXiv 2302.06675): the sign of an average of gradients. One buffer, and every coordinate moves by the rate.

    c = b1 m + (1 - b1) g          the direction, out of the m of the step before
    w -= lr (sign(c) + wd w)
    m = b2 m + (1 - b2) g          which remembers longer than the direction does

Since no update is smaller than the rate, it wants a rate about ten times smaller than AdamW's, and a decay ten times
larger.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wootz.training.optimizers.base import ElementwiseOptimizer, zeros_for


class Lion(ElementwiseOptimizer):
    def __init__(
        self, params: Any, lr: float = 3e-5, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = zeros_for(parameter)
        momentum, (beta1, beta2) = state["momentum"], group["betas"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(momentum.lerp(gradient, 1 - beta1).sign_(), alpha=group["lr"])
        momentum.lerp_(gradient, 1 - beta2)
