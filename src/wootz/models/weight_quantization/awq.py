"""AWQ (arXiv 2306.00978): protect the few columns that matter, the ones that large activations meet.

A column multiplied by s before rounding, and its activation divided by s, gives the same output with an error about s
times smaller; its group's step grows little as long as few columns are scaled. Scales are ``mean|x|^a`` for each input,
with the a in [0, 1] that errs least on the calibration set; a = 0 is plain rounding. Nothing is kept in high
precision: the division goes into what made the activation (the norm's weight, the projection before).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from wootz.models.weight_quantization.gptq import output_error
from wootz.models.weight_quantization.rounding import Quantized, round_to_nearest

_TRIES = 20


@dataclass(frozen=True)
class AWQ:
    """``quantized`` holds ``weight * input_scale``; the operation before is divided by ``input_scale_I``."""

    quantized: Quantized
    input_scale_I: Tensor
    exponent: float

    @property
    def weight_OI(self) -> Tensor:
        """The float32 weight that this stands for, the division included."""
        return self.quantized.weight_OI / self.input_scale_I

    @property
    def num_bytes(self) -> int:
        """The scale is folded away."""
        return self.quantized.num_bytes

    def fold_into(self, weight: Tensor) -> Tensor:
        """The weight of the operation before (a norm's ``(I,)``, or a projection's ``(I, …)``), divided."""
        return weight / self.input_scale_I.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1))


def awq(weight_OI: Tensor, inputs_NI: Tensor, bits: int, *, group_size: int | None = None) -> AWQ:
    """The weight, quantised for inputs like these."""
    weight_OI = weight_OI.detach().float()
    activation_I = inputs_NI.flatten(0, -2).float().abs().mean(0).clamp(min=1e-6)
    best, least = None, float("inf")
    for step in range(_TRIES + 1):
        exponent = step / _TRIES
        scale_I = activation_I**exponent
        scale_I = scale_I / (scale_I.amax() * scale_I.amin()).sqrt()  # around 1, so that float16 holds all
        found = AWQ(round_to_nearest(weight_OI * scale_I, bits, group_size=group_size), scale_I, exponent)
        error = output_error(weight_OI, found.weight_OI, inputs_NI)
        if error < least:
            best, least = found, error
    if best is None:
        raise ValueError("the weight or its inputs hold numbers that are not finite")
    return best


def salient_columns(inputs_NI: Tensor, fraction: float = 0.01) -> Tensor:
    """The input columns with the largest activations, the largest first: what AWQ protects."""
    activation_I = inputs_NI.flatten(0, -2).abs().float().mean(0)
    return activation_I.topk(max(1, round(fraction * len(activation_I)))).indices
