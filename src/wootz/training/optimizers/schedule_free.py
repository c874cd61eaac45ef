"""Schedule-Free SGD and AdamW (arXiv 2405.15682): averaging in place of a schedule. No length of the run is needed.

Three points: z moves by gradients, x is the average of all z and is what one evaluates and keeps, y between them is
where gradients are taken.

    y = (1 - b) z + b x
    z = z - lr (gradient at y, by Adam's denominator; + wd y)
    x = (1 - c) x + c z            c = lr^2 / sum of all lr^2, 1 / t at a constant rate; a warmup weighs less

While training, the model's weights are y, and only z is kept beside them: x follows from both. `eval()` puts x into
the weights, `train()` puts the very y back (a copy is kept meanwhile), so that a run in which somebody looked is, bit
for bit, the run in which nobody did. A model with batch normalisation needs its statistics taken anew at x:
`torch.optim.swa_utils.update_bn`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wootz.core.errors import BadRequestError
from wootz.training.optimizers.base import ElementwiseOptimizer, zeros_for


class _ScheduleFree(ElementwiseOptimizer):
    """`direction` is what z moves along, per unit of rate."""

    def __init__(self, params: Any, lr: float, beta: float, weight_decay: float, **defaults: Any) -> None:
        counters = {"num_steps": 0, "weight_sum": 0.0, "highest_rate": 0.0, "averaging": 0.0}
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay, **defaults, **counters})

    def direction(self, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        return gradient

    @property
    def evaluating(self) -> bool:
        return any("y" in state for state in self.state.values())

    def before(self, group: dict[str, Any]) -> None:
        if self.evaluating:
            raise BadRequestError("a Schedule-Free optimiser was asked for a step at x", hint="call train() first")
        group["num_steps"] += 1
        group["highest_rate"] = max(group["highest_rate"], group["lr"])
        weight = group["highest_rate"] ** 2
        group["weight_sum"] += weight
        group["averaging"] = weight / group["weight_sum"] if weight else 0.0

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        if not state:
            state["z"] = parameter.detach().clone()
        z, y, rate, share = state["z"], parameter, group["lr"], group["averaging"]
        step = self.direction(gradient, group, state) + group["weight_decay"] * y
        # y follows x and z without x being kept: dy = b dx + (1 - b) dz, and dx = c (z_new - x).
        y.lerp_(z, share)
        y.add_(step, alpha=rate * (group["beta"] * (1 - share) - 1))
        z.sub_(step, alpha=rate)

    @torch.no_grad()
    def eval(self) -> None:
        """The weights become x."""
        if self.evaluating:
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                if "z" in self.state.get(parameter, {}):
                    state = self.state[parameter]
                    state["y"] = parameter.detach().clone()
                    parameter.lerp_(state["z"], 1 - 1 / group["beta"])

    @torch.no_grad()
    def train(self) -> None:
        """The weights become y again, exactly as they were."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if "y" in self.state.get(parameter, {}):
                    parameter.copy_(self.state[parameter].pop("y"))


class ScheduleFreeSGD(_ScheduleFree):
    def __init__(self, params: Any, lr: float = 1.0, beta: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, beta, weight_decay)


class ScheduleFreeAdamW(_ScheduleFree):
    """Adam without its first moment: the averaging takes its place, with betas[0] as b."""

    def __init__(
        self,
        params: Any,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas[0], weight_decay, beta2=betas[1], eps=eps)

    def direction(self, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        if "square" not in state:
            state["square"] = zeros_for(gradient)
        beta2 = group["beta2"]
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        corrected = state["square"] / (1 - beta2 ** group["num_steps"])
        return gradient / corrected.sqrt_().add_(group["eps"])
