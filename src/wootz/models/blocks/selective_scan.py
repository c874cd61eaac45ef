"""The selective scan (Mamba, arXiv 2312.00752): a linear recurrence whose decay and input are the token's to choose.

    h_t = exp(dt_t A) h_(t-1) + dt_t x_t B_t        y_t = C_t h_t

for every channel, with its own N numbers of state. As each of them decays at its own pace, this is no matrix product.
Nor need it be computed token by token: √T chunks of √T tokens advance side by side, first from nothing, to learn in
which state each chunk ends; then, once every chunk's start is known, again and for good. 3√T steps instead of T, with
twice the arithmetic, in which nothing can overflow: all factors are at most one.

That pays where a step is too small to keep the device busy. On a CPU, where a step is bound by memory as soon as the
states leave its cache, wide models are scanned token by token.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.models.context import State

CACHED_NUMBERS = 1 << 16
"""This many numbers of state a CPU core has at hand."""


def selective_scan(
    state: State, x_BTI: Tensor, dt_BTI: Tensor, a_IN: Tensor, b_BTN: Tensor, c_BTN: Tensor
) -> tuple[Tensor, State]:
    """``(y (B, T, I), (h (B, I, N),))``, in the state's dtype. ``a`` is negative and ``dt`` is not."""
    (h_BIN,) = state
    x, dt, b, c = (t.to(h_BIN.dtype) for t in (x_BTI, dt_BTI, b_BTN, c_BTN))
    length = x.shape[1]
    size = -(-length // _num_chunks(length, h_BIN))
    number = -(-length // size)
    # What is appended has dt = 0, which leaves the state as it is.
    x, dt, b, c = (F.pad(t, (0, 0, 0, number * size - length)).unflatten(1, (number, size)) for t in (x * dt, dt, b, c))
    starts_BnIN = h_BIN.unsqueeze(1)
    if number > 1:
        from_zero_BnIN = torch.zeros_like(h_BIN).unsqueeze(1)
        ends_BnIN, _ = _side_by_side(from_zero_BnIN, x, dt, a_IN, b, None)
        faded_BnIN = (dt.sum(2).unsqueeze(-1) * a_IN).exp()
        starts = [h_BIN]
        for chunk in range(number - 1):
            starts.append(faded_BnIN[:, chunk] * starts[-1] + ends_BnIN[:, chunk])
        starts_BnIN = torch.stack(starts, dim=1)
    ends_BnIN, y_BnsI = _side_by_side(starts_BnIN, x, dt, a_IN, b, c)
    return y_BnsI.flatten(1, 2)[:, :length], (ends_BnIN[:, -1],)


def _num_chunks(length: int, h_BIN: Tensor) -> int:
    most = math.isqrt(length)
    if h_BIN.device.type == "cpu":
        most = min(most, CACHED_NUMBERS // h_BIN.numel())
    return most if most >= 4 else 1  # with fewer, twice the arithmetic is not made up for


def _side_by_side(
    h_BnIN: Tensor, dtx_BnsI: Tensor, dt_BnsI: Tensor, a_IN: Tensor, b_BnsN: Tensor, c_BnsN: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Advance n chunks together, by s tokens each: ``(h, y)``, or without ``c`` only the states."""
    outputs = []
    for s in range(dt_BnsI.shape[2]):
        decay_BnIN = (dt_BnsI[:, :, s, :, None] * a_IN).exp()
        h_BnIN = torch.addcmul(dtx_BnsI[:, :, s, :, None] * b_BnsN[:, :, s, None], decay_BnIN, h_BnIN)
        if c_BnsN is not None:
            outputs.append((h_BnIN @ c_BnsN[:, :, s, :, None]).squeeze(-1))
    return h_BnIN, torch.stack(outputs, dim=2) if outputs else h_BnIN
