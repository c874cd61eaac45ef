"""Quadratics, on which all is known: where a step converges, how many an ill-conditioned valley takes, who overshoots.

f(w) = 1/2 sum a_i w_i^2. Gradient descent multiplies each coordinate by 1 - rate * a: it converges below 2 / a, swings
between two points at 2 / a, diverges above. In a valley of condition kappa it takes about kappa steps, and accelerated
methods about sqrt(kappa).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from wootz.core.errors import BadRequestError
from wootz.training.optimizers import OptimizerConfig, build_optimizer

Regime = Literal["monotone", "alternating", "two-cycle", "diverges"]


def regime(rate: float, curvature: float) -> Regime:
    """Of gradient descent in one dimension. At 1 / curvature it arrives in one step ("monotone")."""
    factor = 1 - rate * curvature
    if abs(factor) > 1:
        return "diverges"
    return "two-cycle" if factor == -1 else "alternating" if factor < 0 else "monotone"


@dataclass(frozen=True)
class Race:
    optimizer: str
    learning_rate: float
    momentum: float
    steps: int | None
    """To the tolerance; None: not within the limit."""
    path: list[tuple[float, float]]
    """The weights after each step."""


def race(
    name: str,
    kappa: float,
    *,
    noise: float = 0.0,
    tolerance: float = 1e-3,
    limit: int = 20_000,
    learning_rate: float | None = None,
    seed: int = 0,
) -> Race:
    """Down a valley with curvatures 1 and 1 / kappa, until within ``tolerance`` of its floor along and across.

    The valley lies at 30 degrees to the axes: methods that scale each coordinate by itself get no present.

    Without a rate: the best that theory has. For gradient descent 2 / (1 + 1 / kappa); for heavy-ball momentum and
    Nesterov the rate and momentum that are optimal for this kappa; for others 0.01."""
    if kappa < 1:
        raise BadRequestError("a valley's condition is at least 1")
    cosine, sine = math.cos(math.pi / 6), math.sin(math.pi / 6)
    turn = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
    curvature = turn @ torch.diag(torch.tensor([1.0, 1 / kappa], dtype=torch.float64)) @ turn.T
    rate, momentum = _tuned(name, kappa)
    rate = learning_rate or rate
    weight = nn.Parameter(turn @ torch.ones(2, dtype=torch.float64))
    config = OptimizerConfig(name=name, learning_rate=rate, momentum=momentum, weight_decay=0.0)
    optimizer = build_optimizer([weight], config)
    generator = torch.Generator().manual_seed(seed)
    path = [_point(weight)]
    for step in range(1, limit + 1):
        weight.grad = curvature @ weight.detach() + noise * torch.randn(2, generator=generator, dtype=torch.float64)
        optimizer.step()
        path.append(_point(weight))
        if (turn.T @ weight.detach()).abs().max() < tolerance:
            return Race(name, rate, momentum, step, path)
        if not all(map(math.isfinite, path[-1])):
            break
    return Race(name, rate, momentum, None, path)


def _tuned(name: str, kappa: float) -> tuple[float, float]:
    root = math.sqrt(kappa)
    match name:
        case "sgd":
            return 2 / (1 + 1 / kappa), 0.0
        case "momentum":  # Polyak 1964
            return (2 / (1 + 1 / root)) ** 2, ((root - 1) / (root + 1)) ** 2
        case "nag":
            return 1.0, (root - 1) / (root + 1)
        case "prodigy" | "d-adaptation":
            return 1.0, 0.0
        case _:
            return 0.01, 0.9


def _point(weight: Tensor) -> tuple[float, float]:
    first, second = weight.tolist()
    return first, second


def overshoot(name: str, *, momentum: float = 0.9, rate: float = 0.1) -> float:
    """How far beyond the optimum of f(w) = w^2 / 2 the weight swings, from 1, at equal rate and momentum."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = build_optimizer([weight], OptimizerConfig(name=name, learning_rate=rate, momentum=momentum))
    lowest = 1.0
    for _ in range(200):
        weight.grad = weight.detach().clone()
        optimizer.step()
        lowest = min(lowest, weight.item())
    return max(0.0, -lowest)


def excess_by_batch(
    batch_sizes: list[int], rate: float, noise: float, *, steps: int = 4000, seed: int = 0
) -> list[float]:
    """The mean of w^2 under SGD on f = w^2 / 2 once it has settled, by batch: rate * noise^2 / (B (2 - rate))."""
    found = []
    for batch in batch_sizes:
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(steps, batch, 256, generator=generator, dtype=torch.float64).mean(1) * noise
        weight, squares = torch.zeros(256, dtype=torch.float64), []
        for step in range(steps):
            weight = weight - rate * (weight + draws[step])
            if step > steps // 4:
                squares.append(weight.square().mean().item())
        found.append(sum(squares) / len(squares))
    return found


Loss = Callable[[Tensor], Tensor]


def descent_violations(loss_of: Loss, start: Tensor, rate: float, smoothness: float, steps: int = 100) -> int:
    """In how many of ``steps`` of gradient descent the loss is above what the descent lemma promises."""
    weight, broken = start.clone().requires_grad_(), 0
    for _ in range(steps):
        loss = loss_of(weight)
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            following = weight - rate * gradient
            bound = loss - rate * (1 - rate * smoothness / 2) * gradient.square().sum()
            broken += int(loss_of(following) > bound + 1e-9 * (1 + bound.abs()))
        weight = following.requires_grad_()
    return broken
