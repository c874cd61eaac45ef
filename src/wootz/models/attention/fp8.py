"""FP8 arithmetic, emulated: what becomes of attention when queries and keys are rounded to eight bits.

Accelerators multiply FP8 and add up in float32 (FlashAttention-3, arXiv 2407.08608). Rounding the inputs and computing
in float32 gives the same numbers, anywhere. Round a model's own by running it in an `Fp8Context`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from wootz.models.attention.dense import attend, attention_weights
from wootz.models.context import Context

Fp8Format = Literal["e4m3", "e5m2"]

_MANTISSA_BITS = {"e4m3": 3, "e5m2": 2}
_MIN_EXPONENT = {"e4m3": -6, "e5m2": -14}
_LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}


def round_to_fp8(x: Tensor, format: Fp8Format) -> Tensor:
    """The nearest FP8 number, ties to even, in x's own dtype; what is too large becomes the largest."""
    x = x.clamp(-_LARGEST[format], _LARGEST[format])
    exponent = torch.frexp(x).exponent - 1
    # Below the smallest normal number the steps get no smaller.
    step = torch.ldexp(torch.ones_like(x), exponent.clamp_min(_MIN_EXPONENT[format]) - _MANTISSA_BITS[format])
    return (x / step).round() * step


def round_scaled(x_THd: Tensor, format: Fp8Format) -> Tensor:
    """Rounded after each head was scaled so that its largest number is FP8's largest, as kernels do."""
    scale_1H1 = x_THd.float().abs().amax((0, -1), keepdim=True) / _LARGEST[format]
    scale_1H1 = scale_1H1.masked_fill(scale_1H1 == 0, 1)
    return (round_to_fp8(x_THd.float() / scale_1H1, format) * scale_1H1).to(x_THd.dtype)


@dataclass(frozen=True)
class Fp8Report:
    """How far rounding q and k moves causal attention."""

    score_error: float
    """Largest change of a score."""
    kl_divergence: float
    """Mean over heads and queries, in nats, of the rounded weights from the exact ones."""
    output_error: float
    """Root mean square of the output's change, relative to the output's."""


@torch.no_grad()
def fp8_report(q_THd: Tensor, k_TKd: Tensor, v_TKe: Tensor, *, scale: float, format: Fp8Format) -> Fp8Report:
    weights, scores, outputs = [], [], []
    v_KTe = v_TKe.float().transpose(0, 1)
    for rounded in (False, True):
        q, k = (round_scaled(x, format) if rounded else x for x in (q_THd, k_TKd))
        q, k = q.float().transpose(0, 1), k.float().transpose(0, 1)
        scores.append(scale * q @ k.repeat_interleave(len(q) // len(k), 0).mT)
        weights.append(attention_weights(q, k, scale=scale, is_causal=True).double())
        outputs.append(attend(q, k, v_KTe, scale=scale, is_causal=True))
    divergence = (weights[0] * (weights[0].clamp_min(1e-300).log() - weights[1].clamp_min(1e-300).log())).sum(-1)
    return Fp8Report(
        score_error=(scores[1] - scores[0]).tril().abs().max().item(),
        kl_divergence=divergence.mean().item(),
        output_error=((outputs[1] - outputs[0]).norm() / outputs[0].norm()).item(),
    )


class Fp8Context:
    """Another context, with queries and keys rounded on their way in: for the perplexity that FP8 attention costs."""

    def __init__(self, inner: Context, format: Fp8Format) -> None:
        self.inner = inner
        self.format: Fp8Format = format
        self.remembers = inner.remembers

    def attend(self, slot: int, q_THd: Tensor, k_TKd: Tensor, v_TKe: Tensor, **how: Any) -> Tensor:
        q_THd, k_TKd = round_scaled(q_THd, self.format), round_scaled(k_TKd, self.format)
        return self.inner.attend(slot, q_THd, k_TKd, v_TKe, **how)

    def attend_latent(self, slot: int, q_THd: Tensor, latent_Td: Tensor, **how: Any) -> Tensor:
        raise NotImplementedError("a latent is key and value in one, and FP8 is emulated for keys only")

    def recur(self, slot: int, *how: Any) -> Tensor:
        return self.inner.recur(slot, *how)
