"""GPTQ (arXiv 2210.17323): round one column after the other, and let the columns not yet rounded make good the error.

What is kept small is the error of the outputs, ``|W X - Q X|^2``, whose curvature in each row is ``H = 2 X X^T`` over
a small calibration set. After column j is rounded, the best that the columns after it can do (the optimal brain
surgeon's answer) is to change by ``-(w_j - q_j) / [H^-1]_jj * [H^-1]_j,after``. All those inverses are rows of one
Cholesky factor of ``H^-1``. Columns are taken in blocks, so that most of the work is matrix products.
Legend: O outputs, I inputs, N samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wootz.models.weight_quantization.rounding import Quantized, round_with, step_sizes

_BLOCK = 128


def input_hessian(inputs_NI: Tensor) -> Tensor:
    """``2 X X^T / N``, ``(I, I)``, in float32."""
    inputs_NI = inputs_NI.flatten(0, -2).float()
    return 2 * inputs_NI.T @ inputs_NI / len(inputs_NI)


def gptq(
    weight_OI: Tensor,
    inputs_NI: Tensor,
    bits: int,
    *,
    group_size: int | None = None,
    damping: float = 0.01,
    act_order: bool = False,
) -> Quantized:
    """The weight, quantised for inputs like these."""
    hessian = input_hessian(inputs_NI)
    return gptq_by_hessian(weight_OI, hessian, bits, group_size=group_size, damping=damping, act_order=act_order)


def gptq_by_hessian(
    weight_OI: Tensor,
    hessian: Tensor,
    bits: int,
    *,
    group_size: int | None = None,
    damping: float = 0.01,
    act_order: bool = False,
    dtype: torch.dtype = torch.float16,
) -> Quantized:
    """The same, where only `input_hessian` of the inputs is at hand; ``dtype`` is the scales'.

    ``damping`` times the mean of H's diagonal is added to it, for calibration sets that do not span the inputs.
    ``act_order`` takes the columns of the largest activations first, while there are most columns to answer; each
    column keeps its group. With groups, a scale is taken from the weights as they are when their first column is due.
    """
    columns = weight_OI.shape[1]
    hessian, weight = hessian.clone(), weight_OI.detach().float().clone()
    unused = hessian.diagonal() == 0  # such columns are rounded to the nearest, and answer for nobody
    hessian.diagonal()[unused] = 1

    order = hessian.diagonal().argsort(descending=True) if act_order else torch.arange(columns)
    weight, hessian = weight[:, order], hessian[order][:, order]
    factor = _factor_of_inverse(hessian, damping)

    size = group_size or columns
    scale = step_sizes(weight_OI.detach(), bits, group_size=group_size, dtype=dtype)
    group_of = order // size
    q = torch.zeros_like(weight, dtype=torch.int8)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = torch.zeros(len(weight), stop - start)
        for j in range(start, stop):
            group = int(group_of[j])
            if group_size and not act_order and j % size == 0:
                # Columns beyond this block have yet to hear of this block's errors.
                coming = weight[:, j : j + size].clone()
                if j + size > stop:
                    coming[:, stop - j :] -= errors @ factor[start:stop, stop : j + size]
                scale[:, group : group + 1] = step_sizes(coming, bits, dtype=dtype)
            step = scale[:, group].float()
            q[:, j] = round_with(weight[:, j], step, bits)
            error = (weight[:, j] - q[:, j] * step) / factor[j, j]
            weight[:, j:stop] -= torch.outer(error, factor[j, j:stop])
            errors[:, j - start] = error
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    back = order.argsort()
    return Quantized(q[:, back], scale, bits)


def _factor_of_inverse(hessian: Tensor, damping: float) -> Tensor:
    """Upper U with ``U^T U = H^-1``: ``U[j, j:] / U[j, j]`` is what column j's error asks of those after it.

    What is damped too little to have an inverse is damped ten times as much, until it has.
    """
    mean = hessian.diagonal().double().mean()
    while True:
        damped = hessian.double()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(upper.isfinite().all()):
                return upper.float()
        if damping > 1e6:
            raise ValueError("the inputs hold numbers that are not finite")
        damping = 10 * max(damping, 1e-4)


def output_error(weight_OI: Tensor, quantized_OI: Tensor, inputs_NI: Tensor) -> float:
    """Mean squared difference of the outputs."""
    return ((weight_OI.float() - quantized_OI.float()) @ inputs_NI.flatten(0, -2).float().T).square().mean().item()
