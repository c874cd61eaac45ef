"""What each method costs a model: bits, size, the error of the layers' outputs, and perplexity."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from wootz.core.progress import SILENT, Progress
from wootz.models.decoder import Decoder
from wootz.models.linear import Linear
from wootz.models.weight_quantization.awq import awq
from wootz.models.weight_quantization.gptq import gptq, output_error
from wootz.models.weight_quantization.outliers import split_outliers
from wootz.models.weight_quantization.rounding import round_to_nearest

_GROUP = 32
_MOST_INPUTS = 2048


class Result(Protocol):
    @property
    def weight_OI(self) -> Tensor: ...
    @property
    def num_bytes(self) -> int: ...


Method = Callable[[Tensor, Tensor], Result]
"""``method(weight_OI, inputs_NI)``."""

METHODS: dict[str, Method] = {
    "int8": lambda weight, inputs: round_to_nearest(weight, 8),
    "llm.int8": split_outliers,
    "int4": lambda weight, inputs: round_to_nearest(weight, 4, group_size=_GROUP),
    "int4 gptq": lambda weight, inputs: gptq(weight, inputs, 4, group_size=_GROUP),
    "int4 awq": lambda weight, inputs: awq(weight, inputs, 4, group_size=_GROUP),
    "int3": lambda weight, inputs: round_to_nearest(weight, 3, group_size=_GROUP),
    "int3 gptq": lambda weight, inputs: gptq(weight, inputs, 3, group_size=_GROUP),
    "int3 awq": lambda weight, inputs: awq(weight, inputs, 3, group_size=_GROUP),
}
"""Those of the report, with a scale for every 32 weights below eight bits."""


@dataclass(frozen=True)
class Measured:
    """One line of the report; ``bits`` are those of a quantised weight, scales included."""

    method: str
    bits: float
    num_bytes: int
    """Of the whole model, what is not quantised (embedding, head, norms) in 16 bits."""
    output_mse: float
    """Mean over the layers, each relative to the mean square of its outputs."""
    perplexity: float
    gap: float
    """Perplexity relative to the model as it was: 0.01 is one percent worse."""


def quantization_report(
    model: Decoder,
    calibration: Sequence[Sequence[int]],
    test: Sequence[Sequence[int]],
    methods: dict[str, Method] | None = None,
    *,
    progress: Progress = SILENT,
) -> list[Measured]:
    """Each method on every projection of the layers; documents are token ids. The first line is the model as it is.

    The output error is measured on inputs of the calibration set, the perplexity on ``test``.
    """
    methods = METHODS if methods is None else methods
    progress.set_total(len(methods) + 1)
    inputs = layer_inputs(model, calibration)
    before = perplexity(model, test)
    quantisable = sum(module.weight.numel() for module in _projections(model).values())
    rest = 2 * (model.num_parameters - quantisable)
    report = [Measured("none", 16.0, 2 * model.num_parameters, 0.0, before, 0.0)]
    progress.advance()
    for name, method in methods.items():
        quantized, num_bytes, error = quantize_model(model, method, inputs)
        after = perplexity(quantized, test)
        bits = 8 * num_bytes / quantisable
        report.append(Measured(name, bits, num_bytes + rest, error, after, after / before - 1))
        progress.advance()
    return report


def quantize_model(model: Decoder, method: Method, inputs: dict[str, Tensor]) -> tuple[Decoder, int, float]:
    """A copy whose projections hold the quantised weights (as floats: this is to measure, not to be fast), the bytes of
    these when packed, and the mean relative output error."""
    quantized = copy.deepcopy(model)
    num_bytes, errors = 0, []
    for name, module in _projections(quantized).items():
        weight_OI = module.weight.detach()
        result = method(weight_OI, inputs[name])
        outputs = (inputs[name].float() @ weight_OI.float().T).square().mean().item()
        errors.append(output_error(weight_OI, result.weight_OI, inputs[name]) / max(outputs, 1e-30))
        num_bytes += result.num_bytes
        module.weight.data.copy_(result.weight_OI)
    return quantized, num_bytes, sum(errors) / len(errors)


@torch.inference_mode()
def layer_inputs(model: Decoder, documents: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """What flows into each projection of the layers, ``(N, I)``, evenly chosen where there is much of it."""
    seen: dict[str, list[Tensor]] = {name: [] for name in _projections(model)}
    with _watched(model, seen):
        for document in documents:
            model.logits(document)
    every = {name: torch.cat(parts) for name, parts in seen.items()}
    return {name: x[:: -(-len(x) // _MOST_INPUTS)] for name, x in every.items()}


@contextmanager
def _watched(model: Decoder, seen: dict[str, list[Tensor]]) -> Iterator[None]:
    def watch(name: str) -> Callable[..., None]:
        return lambda module, arguments: seen[name].append(arguments[0].detach().flatten(0, -2).float())

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in _projections(model).items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def perplexity(model: Decoder, documents: Sequence[Sequence[int]]) -> float:
    total, count = 0.0, 0
    for document in documents:
        ids = torch.as_tensor(document)
        total += F.cross_entropy(model.logits(ids)[:-1], ids[1:].to(model.device), reduction="sum").item()
        count += len(ids) - 1
    return exp(total / count)


def _projections(model: Decoder) -> dict[str, Linear]:
    """Those of the layers; the embedding and the head are few of a large model's weights, and touchy."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear) and name.startswith("layers.")
    }
