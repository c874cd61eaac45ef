"""The methods of `wootz quantize`: what each folds first, how it rounds a weight, and in which layout it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wootz.models.quantized_layouts import Layout
from wootz.models.quantized_layouts.awq import AWQLayout
from wootz.models.quantized_layouts.bitsandbytes import BitsAndBytesLayout
from wootz.models.quantized_layouts.compressed_tensors import floats, integers
from wootz.models.quantized_layouts.gptq import GPTQLayout
from wootz.models.quantized_weight import FLOAT8, LARGEST_FLOAT8, Float8Weight, QuantizedWeight
from wootz.models.rounded_inputs import RoundedInputs
from wootz.models.weight_quantization.calibration import Inputs
from wootz.models.weight_quantization.gptq import gptq_by_hessian
from wootz.models.weight_quantization.rounding import round_from_minimum, round_to_nearest

TRIES = 20
"""Exponents of AWQ's search, and steps of its search for where to cut off."""

FEWEST_TOKENS = 16
"""With fewer inputs on the calibration texts, a projection (an expert that is rarely chosen) is rounded as it is."""


@dataclass(frozen=True)
class Settings:
    group_size: int
    act_order: bool = False
    clip: bool = True
    damping: float = 0.01
    alpha: float = 0.5
    """SmoothQuant: how much of the outliers goes into the weights."""
    dtype: torch.dtype = torch.bfloat16
    """Of what is not quantised, and of scales where the layout leaves it open."""


@dataclass(frozen=True)
class WholeModelMethod:
    quantize: Callable[[Tensor, Inputs | None, Settings], QuantizedWeight]
    """``(weight_OI, inputs, settings)``; without inputs, where there were too few."""
    layout: Callable[[Settings], Layout]
    fold: Literal["awq", "smoothquant"] | None = None
    calibrated: bool = False
    hessian: bool = False
    grouped: bool = False
    by_tensor: bool = False
    """Projections of one input are rounded one by one, as each has a scale of its own."""


def _rtn4(weight_OI: Tensor, inputs: Inputs | None, settings: Settings) -> QuantizedWeight:
    return round_to_nearest(weight_OI, 4, group_size=settings.group_size, dtype=settings.dtype).held()


def _int8(weight_OI: Tensor, inputs: Inputs | None, settings: Settings) -> QuantizedWeight:
    return round_to_nearest(weight_OI, 8, dtype=settings.dtype).held()


def _gptq(weight_OI: Tensor, inputs: Inputs | None, settings: Settings) -> QuantizedWeight:
    if inputs is None:
        return round_to_nearest(weight_OI, 4, group_size=settings.group_size).held()
    options = {"group_size": settings.group_size, "damping": settings.damping, "act_order": settings.act_order}
    return gptq_by_hessian(weight_OI, inputs.hessian_II, 4, **options).held()


def _awq(weight_OI: Tensor, inputs: Inputs | None, settings: Settings) -> QuantizedWeight:
    shrink = best_clip(weight_OI, inputs.rows_NI, settings.group_size) if inputs and settings.clip else 1.0
    return round_from_minimum(weight_OI, 4, group_size=settings.group_size, shrink_OG=shrink)


def _smoothquant(weight_OI: Tensor, inputs: Inputs | None, settings: Settings) -> QuantizedWeight:
    return RoundedInputs(_int8(weight_OI, inputs, settings), torch.int8)


def _llm_int8(weight_OI: Tensor, inputs: Inputs | None, settings: Settings) -> QuantizedWeight:
    rounded = round_to_nearest(weight_OI, 8, dtype=torch.float32).held()
    return RoundedInputs(rounded, torch.int8, keep_above=BitsAndBytesLayout().threshold)


def _fp8(weight_OI: Tensor, inputs: Inputs | None, settings: Settings) -> QuantizedWeight:
    return RoundedInputs(_float8(weight_OI, weight_OI.abs().amax(1, keepdim=True)), FLOAT8)


def _fp8_static(weight_OI: Tensor, inputs: Inputs | None, settings: Settings) -> QuantizedWeight:
    weight = _float8(weight_OI, weight_OI.abs().amax().view(1, 1).expand(len(weight_OI), 1))
    largest = inputs.max_abs_I.amax() if inputs else torch.tensor(1.0)
    return RoundedInputs(weight, FLOAT8, (largest / LARGEST_FLOAT8).clamp(min=1e-12).view(1))


def _float8(weight_OI: Tensor, largest_O1: Tensor) -> Float8Weight:
    scale = (largest_O1 / LARGEST_FLOAT8).clamp(min=1e-12).float()
    steps = (weight_OI.float() / scale).clamp(-LARGEST_FLOAT8, LARGEST_FLOAT8)
    return Float8Weight(steps.to(FLOAT8), scale.contiguous())


METHODS: dict[str, WholeModelMethod] = {
    "rtn4": WholeModelMethod(_rtn4, lambda s: integers(4, s.group_size), grouped=True),
    "int8": WholeModelMethod(_int8, lambda s: integers(8, None)),
    "gptq": WholeModelMethod(
        _gptq,
        lambda s: GPTQLayout(4, s.group_size, damping=s.damping),
        calibrated=True,
        hessian=True,
        grouped=True,
    ),
    "awq": WholeModelMethod(_awq, lambda s: AWQLayout(s.group_size), fold="awq", calibrated=True, grouped=True),
    "smoothquant": WholeModelMethod(
        _smoothquant, lambda s: integers(8, None, round_inputs=True), fold="smoothquant", calibrated=True
    ),
    "llm-int8": WholeModelMethod(_llm_int8, lambda s: BitsAndBytesLayout()),
    "fp8": WholeModelMethod(_fp8, lambda s: floats(static=False)),
    "fp8-static": WholeModelMethod(_fp8_static, lambda s: floats(static=True), calibrated=True, by_tensor=True),
}
"""What writes a folder. The block formats of GGUF files are `wootz.models.gguf_export.FILE_TYPES`."""


def smooth_scale(max_abs_I: Tensor, weights: list[Tensor], alpha: float) -> Tensor:
    """SmoothQuant (arXiv 2211.10438): ``max|x|^alpha / max|w|^(1 - alpha)`` for each channel."""
    largest_I = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    scale_I = max_abs_I.clamp(min=1e-5) ** alpha / largest_I.clamp(min=1e-5) ** (1 - alpha)
    return scale_I.clamp(min=1e-4, max=1e4)


def awq_scale(
    mean_abs_I: Tensor,
    readers: list[tuple[Tensor, Tensor]],
    group_size: int,
    tie: Callable[[Tensor], Tensor],
) -> tuple[Tensor, float]:
    """The factors ``mean|x|^a`` with which the readers of an input, ``(weight_OI, rows_NI)`` each, err least, and a.

    Every reader's error counts relative to its output, so a rarely chosen expert counts as much as a busy one.
    """
    exact = [(weight @ rows.T).square().mean().clamp(min=1e-30) for weight, rows in readers]
    best, least, exponent = torch.ones_like(mean_abs_I), float("inf"), 0.0
    for step in range(TRIES):
        a = step / TRIES
        scale_I = tie(mean_abs_I.clamp(min=1e-6) ** a)
        scale_I = (scale_I / (scale_I.amax() * scale_I.amin()).sqrt()).clamp(1e-4, 1e4)
        error = 0.0
        for (weight, rows), size in zip(readers, exact, strict=True):
            rounded = round_from_minimum(weight * scale_I, 4, group_size=group_size).dequantize() / scale_I
            error += (((weight - rounded) @ rows.T).square().mean() / size).item()
        if error < least:
            best, least, exponent = scale_I, error, a
    return best, exponent


def best_clip(weight_OI: Tensor, rows_NI: Tensor, group_size: int, *, steps: int = 10) -> Tensor:
    """How far to bring in the ends of each group's range, ``(O, G)`` in (0.5, 1], for the least error of its share of
    the outputs: a finer step for the many can be worth what the few lose."""
    rows_GNg = rows_NI[:128].unflatten(1, (-1, group_size)).transpose(0, 1)
    best = torch.ones(len(weight_OI), weight_OI.shape[1] // group_size)
    least = torch.full_like(best, float("inf"))
    for step in range(steps):
        shrink = 1 - 0.5 * step / steps
        rounded = round_from_minimum(weight_OI, 4, group_size=group_size, shrink_OG=shrink).dequantize()
        off_GOg = (weight_OI - rounded).unflatten(1, (-1, group_size)).transpose(0, 1)
        error_OG = (off_GOg @ rows_GNg.transpose(1, 2)).square().mean(2).T
        better = error_OG < least
        best, least = torch.where(better, shrink, best), torch.where(better, error_OG, least)
    return best
