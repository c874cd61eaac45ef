"""Sophia (arXiv 2305.14342): momentum over an estimate of the Hessian's diagonal, clipped.

    m = b1 m + (1 - b1) g
    h = b2 h + (1 - b2) estimate          every `every` steps only
    w -= lr (clip(m / max(gamma h, eps), 1) + wd w)

The clip is what makes it safe: where h is stale, tiny or negative (a Hessian's diagonal may be), the step is a signed
one of size lr and no larger. The estimate is given from outside, since it takes a pass of its own:

    optimizer = Sophia(...)
    ...
    if optimizer.wants_curvature:
        optimizer.observe_curvature(gauss_newton_diagonal(logits_NV, parameters))

`hessian_diagonal.py` has both estimators of the paper; `refresh_curvature` does all of this for a language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wootz.training.optimizers.base import ElementwiseOptimizer, state_dtype, zeros_for


class Sophia(ElementwiseOptimizer):
    """``gamma``: 0.05 for Gauss-Newton-Bartlett, 0.01 for Hutchinson (the paper's)."""

    def __init__(
        self,
        params: Any,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        gamma: float = 0.05,
        eps: float = 1e-12,
        weight_decay: float = 0.0,
        every: int = 10,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "every": every, "num_steps": 0})

    @property
    def wants_curvature(self) -> bool:
        """The next step is one for which the diagonal should be estimated anew."""
        return self.param_groups[0]["num_steps"] % self.param_groups[0]["every"] == 0

    @torch.no_grad()
    def observe_curvature(self, diagonals: Sequence[Tensor]) -> None:
        """One estimate for each parameter that requires gradients, in the order of the groups."""
        pairs = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        pairs = [(parameter, group) for parameter, group in pairs if parameter.requires_grad]
        for (parameter, group), diagonal in zip(pairs, diagonals, strict=True):
            hessian = self._state_of(parameter)["hessian"]
            hessian.lerp_(diagonal.to(state_dtype(parameter)), 1 - group["betas"][1])

    def before(self, group: dict[str, Any]) -> None:
        group["num_steps"] += 1

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        state = self._state_of(parameter)
        state["momentum"].lerp_(gradient, 1 - group["betas"][0])
        scale = (state["hessian"] * group["gamma"]).clamp_(min=group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_((state["momentum"] / scale).clamp_(-1, 1), alpha=group["lr"])

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            state["momentum"], state["hessian"] = zeros_for(parameter), zeros_for(parameter)
        return state
