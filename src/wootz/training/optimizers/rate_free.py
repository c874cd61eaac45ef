"""Prodigy and D-Adaptation: Adam that finds its own learning rate. The given one is a factor, 1 by default.

The best rate of a convex problem is D / (G sqrt(T)), D the distance from the start to the optimum. Both keep a lower
bound d of D that only grows, out of what gradients said so far, and step by it. All groups share one d.

D-Adaptation (arXiv 2301.07733, its Adam form), with the A-norm of the Adam denominator:

    r = average of d lr <g, s / A>       s = average of d lr g     d >= r / ((1 - sqrt(b2)) |s|_1)

Prodigy (arXiv 2306.06101, algorithm 4) measures how far one has come instead, and grows faster:

    r = sqrt(b2) r + d^2 lr <g, x0 - x>  s = sqrt(b2) s + d^2 lr g   d >= r / |s|_1

Averages are by sqrt(b2). (In the paper Prodigy's two have a factor 1 - sqrt(b2), which cancels.) Their price is state:
12 and 16 bytes per parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from wootz.training.optimizers.base import ExactOptimizer, state_dtype, total, zeros_for


class _RateFree(ExactOptimizer):
    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
    ) -> None:
        """``d0`` is the first guess of the distance: too small costs a few steps, too large diverges."""
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "distance": d0, "numerator": 0.0})

    @property
    def distance(self) -> float:
        """The present estimate of D."""
        return self.param_groups[0]["distance"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lead, distance = self.param_groups[0], self.distance
        remembered = math.sqrt(lead["betas"][1])
        gained = norm = 0.0
        for parameter, group in self._learning():
            more, size = self.observe(parameter, parameter.grad.to(state_dtype(parameter)), group)  # type: ignore[union-attr]
            gained, norm = gained + more, norm + size
        numerator = self.accumulated(lead["numerator"], gained, remembered)
        estimate = self.estimated(numerator, norm, remembered) if norm > 0 else 0.0
        for parameter, group in self._learning():
            self.move(parameter, group, distance)
        for group in self.param_groups:
            group["numerator"], group["distance"] = numerator, max(distance, estimate)
        return loss

    def _learning(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield parameter, group

    def observe(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> tuple[float, float]:
        """Take the gradient into the averages; what it adds to the numerator, and |s|_1."""
        raise NotImplementedError

    def accumulated(self, numerator: float, gained: float, remembered: float) -> float:
        raise NotImplementedError

    def estimated(self, numerator: float, norm: float, remembered: float) -> float:
        raise NotImplementedError

    def move(self, parameter: Tensor, group: dict[str, Any], distance: float) -> None:
        raise NotImplementedError


class Prodigy(_RateFree):
    def observe(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> tuple[float, float]:
        state, rate, d, (beta1, beta2) = self.state[parameter], group["lr"], group["distance"], group["betas"]
        if not state:
            state["start"] = parameter.detach().clone().to(state_dtype(parameter))
            state["first"], state["second"], state["s"] = (zeros_for(parameter) for _ in range(3))
        gained = d * d * rate * total((gradient * (state["start"] - parameter)).sum())
        state["first"].mul_(beta1).add_(gradient, alpha=d * (1 - beta1))
        state["second"].mul_(beta2).addcmul_(gradient, gradient, value=d * d * (1 - beta2))
        state["s"].mul_(math.sqrt(beta2)).add_(gradient, alpha=d * d * rate)
        return gained, total(state["s"].abs().sum())

    def accumulated(self, numerator: float, gained: float, remembered: float) -> float:
        return remembered * numerator + gained

    def estimated(self, numerator: float, norm: float, remembered: float) -> float:
        return numerator / norm

    def move(self, parameter: Tensor, group: dict[str, Any], distance: float) -> None:
        state, step = self.state[parameter], distance * group["lr"]
        parameter.mul_(1 - step * group["weight_decay"])
        parameter.sub_(state["first"] / (state["second"].sqrt() + distance * group["eps"]), alpha=step)


class DAdaptAdam(_RateFree):
    def observe(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> tuple[float, float]:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        step, remembered = group["distance"] * group["lr"], math.sqrt(group["betas"][1])
        if not state:
            state["first"], state["second"], state["s"] = (zeros_for(parameter) for _ in range(3))
        gained = step * total((gradient * state["s"] / (state["second"].sqrt() + group["eps"])).sum())
        state["first"].mul_(beta1).add_(gradient, alpha=step * (1 - beta1))
        state["second"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["s"].mul_(remembered).add_(gradient, alpha=step * (1 - remembered))
        return gained, total(state["s"].abs().sum())

    def accumulated(self, numerator: float, gained: float, remembered: float) -> float:
        return remembered * numerator + (1 - remembered) * gained

    def estimated(self, numerator: float, norm: float, remembered: float) -> float:
        return numerator / ((1 - remembered) * norm)

    def move(self, parameter: Tensor, group: dict[str, Any], distance: float) -> None:
        state = self.state[parameter]
        parameter.mul_(1 - distance * group["lr"] * group["weight_decay"])
        parameter.sub_(state["first"] / (state["second"].sqrt() + group["eps"]))
