"""Estimates of the Hessian's diagonal, one pass each: what Sophia divides by.

Hutchinson: E[u * (H u)] = diag(H) for u of independent signs. Unbiased, of either sign, and needs a second derivative.
Gauss-Newton-Bartlett (Sophia, section 2.3): for a cross-entropy, labels drawn from the model's own prediction make
the squared gradient an unbiased estimate of the Gauss-Newton diagonal: never negative, first derivatives only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.training.optimizers.sophia import Sophia


def hutchinson_diagonal(loss: Tensor, parameters: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """One draw of u * (H u) for each parameter; ``loss`` must still have its graph."""
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    signs = [
        torch.randint(2, parameter.shape, generator=generator, device=generator.device).to(parameter) * 2 - 1
        for parameter in parameters
    ]
    products = torch.autograd.grad(gradients, parameters, signs, allow_unused=True, materialize_grads=True)
    return [sign * product for sign, product in zip(signs, products, strict=True)]


def gauss_newton_diagonal(logits_NV: Tensor, parameters: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """N * g^2 for each parameter, g the gradient of the mean cross-entropy against labels drawn from the logits. The
    diagonal is that of the mean loss."""
    drawn_N = torch.multinomial(logits_NV.detach().float().softmax(-1).to(generator.device), 1, generator=generator)
    loss = F.cross_entropy(logits_NV.float(), drawn_N[:, 0].to(logits_NV.device))
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return [len(logits_NV) * gradient.square() for gradient in gradients]


def refresh_curvature(optimizer: torch.optim.Optimizer, logits: Callable[[], Tensor]) -> None:
    """Before a step: gives Sophia its Gauss-Newton estimate when one is due. For any other optimiser, nothing.

    ``logits`` computes ``(N, V)`` predictions of the present batch, with their graph. Labels are drawn by the step's
    number, so a resumed run draws those of the uninterrupted one."""
    inner: Any = getattr(optimizer, "inner", optimizer)
    if not isinstance(inner, Sophia) or not inner.wants_curvature:
        return
    generator = torch.Generator().manual_seed(inner.param_groups[0]["num_steps"])
    groups = optimizer.param_groups
    parameters = [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]
    inner.observe_curvature(gauss_newton_diagonal(logits(), parameters, generator))
