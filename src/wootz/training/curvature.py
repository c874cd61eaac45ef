"""How sharp the loss is where the weights are: the largest eigenvalue of its Hessian, and of it as Adam sees it.

Gradient descent on a quadratic of curvature a converges while rate < 2 / a; on a network the same holds along the
sharpest direction, so 2 / lambda_max is the ceiling of the rate. Training without noise raises lambda_max up to it and
hovers there (the edge of stability, arXiv 2103.00065). Momentum b moves the ceiling to 2 (1 + b) / rate; Adam's is
2 (1 + b1) / ((1 - b1) rate) on the Hessian divided by its denominator (arXiv 2207.14484).

All of it by Hessian-vector products: two backward passes each, never a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wootz.core.errors import UnsupportedError

Loss = Callable[[], Tensor]
"""Computes the loss anew, with its graph; the same each time (no dropout, one batch)."""

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix times a flat vector ``(P,)``."""


def hessian_product(loss_of: Loss, parameters: Sequence[Tensor]) -> Product:
    """H v of the loss where the parameters are now. Keeps the graph until it is dropped."""
    gradients = torch.autograd.grad(loss_of(), parameters, create_graph=True)
    flat_P = torch.cat([gradient.flatten() for gradient in gradients])

    def product(vector_P: Tensor) -> Tensor:
        parts = torch.autograd.grad(flat_P, parameters, vector_P, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    return product


def preconditioned(product: Product, denominator_P: Tensor) -> Product:
    """D^-1/2 H D^-1/2: has the eigenvalues of D^-1 H, and is symmetric."""
    root_P = denominator_P.rsqrt()
    return lambda vector_P: root_P * product(root_P * vector_P)


def lanczos(product: Product, size: int, *, iterations: int = 30, generator: torch.Generator | None = None) -> Tensor:
    """Ritz values, ascending: the outermost are close to the outermost eigenvalues after few iterations, on either
    side. ``generator`` draws the first vector."""
    vector_P = torch.randn(size, generator=generator, dtype=torch.float64)
    basis, diagonal, off = [vector_P / vector_P.norm()], [], []
    for _ in range(min(iterations, size)):
        image_P = product(basis[-1].to(torch.get_default_dtype())).double()
        diagonal.append((image_P @ basis[-1]).item())
        kept_KP = torch.stack(basis)
        for _ in range(2):  # once is not enough in floating point
            image_P = image_P - kept_KP.T @ (kept_KP @ image_P)
        off.append(image_P.norm().item())
        if off[-1] < 1e-10 * max(map(abs, diagonal)) or len(basis) == min(iterations, size):
            break
        basis.append(image_P / off[-1])
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    beside = torch.diag(torch.tensor(off[: len(diagonal) - 1], dtype=torch.float64), 1)
    return torch.linalg.eigvalsh(tridiagonal + beside + beside.T)


def power_iteration(
    product: Product,
    size: int,
    *,
    iterations: int = 100,
    tolerance: float = 1e-4,
    generator: torch.Generator | None = None,
) -> float:
    """The eigenvalue of largest magnitude, with its sign. Slow where two are close; `lanczos` is the better choice, and
    this its check."""
    vector_P = torch.randn(size, generator=generator)
    vector_P, value = vector_P / vector_P.norm(), 0.0
    for _ in range(iterations):
        image_P = product(vector_P)
        before, value = value, (vector_P @ image_P).item()
        if abs(value - before) <= tolerance * abs(value):
            break
        vector_P = image_P / image_P.norm().clamp(min=1e-30)
    return value


def sharpness(
    loss_of: Loss, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer | None = None, *, iterations: int = 20
) -> float:
    """lambda_max of the Hessian; with an Adam, of the Hessian divided by its present denominator."""
    product, size = hessian_product(loss_of, parameters), sum(parameter.numel() for parameter in parameters)
    if optimizer is not None:
        product = preconditioned(product, adam_denominator(optimizer, parameters))
    return lanczos(product, size, iterations=iterations, generator=torch.Generator().manual_seed(0))[-1].item()


def adam_denominator(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> Tensor:
    """sqrt(v / (1 - b2^t)) + eps, flat, in the order of ``parameters``. Adam's own, after at least one step."""
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    parts = []
    for parameter in parameters:
        state, group = optimizer.state.get(parameter, {}), groups.get(id(parameter), {})
        if "exp_avg_sq" not in state:
            raise UnsupportedError(
                f"{type(optimizer).__name__} has no second moment here", hint="use adamw, and step first"
            )
        corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
        parts.append((corrected.sqrt() + group["eps"]).flatten())
    return torch.cat(parts)


def ceiling(rate: float, *, momentum: float = 0.0, adam: bool = False) -> float:
    """The sharpness above which a step of ``rate`` overshoots more each time. ``momentum``: SGD's (velocity of whole
    gradients), or Adam's b1, whose velocity is an average."""
    limit = 2 * (1 + momentum) / rate
    return limit / (1 - momentum) if adam else limit


@dataclass
class SharpnessTracker:
    """lambda_max beside its ceiling, over a run: call it after steps. Under Adam both are the preconditioned ones."""

    loss_of: Loss
    parameters: Sequence[Tensor]
    optimizer: torch.optim.Optimizer
    iterations: int = 20
    steps: list[int] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    ceilings: list[float] = field(default_factory=list)

    def __call__(self, step: int) -> None:
        group: dict[str, Any] = self.optimizer.param_groups[0]
        adam = isinstance(self.optimizer, torch.optim.Adam)
        momentum = group["betas"][0] if adam else group.get("momentum", 0.0)
        self.steps.append(step)
        inner = self.optimizer if adam else None
        self.sharpness.append(sharpness(self.loss_of, self.parameters, inner, iterations=self.iterations))
        rate = group["lr"]
        self.ceilings.append(ceiling(rate, momentum=momentum, adam=adam) if rate else math.inf)


def descent_bound(loss: float, gradient_norm: float, rate: float, smoothness: float) -> float:
    """What the descent lemma promises of the next loss: no more than L - rate (1 - rate * smoothness / 2) |g|^2, for a
    gradient that is ``smoothness``-Lipschitz. Lowest at 1 / smoothness, a promise of descent below 2 / smoothness."""
    return loss - rate * (1 - rate * smoothness / 2) * gradient_norm**2
