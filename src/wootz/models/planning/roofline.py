"""What serving would cost: a roofline over the counts of `accounting` and the figures of `hardware`.

A decoding step reads every weight it needs once, whatever the batch, and each sequence's own cache; it computes for
each sequence. The slower of reading and computing is a floor for the step, and real engines reach a part of it:
``efficiency`` is that part, and it is stated with every result. Pipeline stages work one after the other on one batch:
they add memory, not speed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from wootz.models.decoder import Decoder
from wootz.models.planning.accounting import CacheCost, Parameters, cache_cost, count_parameters, token_flops
from wootz.models.planning.hardware import Device

WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5, "q4_k": 0.5625}
"""Per parameter. "q4_k" with its scales: 4.5 bits."""
KV_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
"""Per number, without scales."""

USABLE = 0.9
"""Of a device's memory; the rest is for activations and fragments."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    context: int
    """Tokens in the cache of each sequence."""
    batch: int = 1
    prompt: int | None = None
    """Tokens to prefill for each answer; ``context`` if None."""
    weights: str = "bf16"
    kv: str = "bf16"


@dataclass(frozen=True)
class Fit:
    """How a model is spread: each of ``pipeline`` stages of layers over ``tensor`` devices."""

    tensor: int
    pipeline: int

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline


@dataclass(frozen=True)
class Plan:
    parameters: Parameters
    cache: CacheCost
    weight_bytes: float
    cache_bytes: float
    """Of the whole batch."""
    fit: Fit | None
    """None if it fits on no number of devices that was tried."""
    flops_per_token: int
    read_seconds: float
    compute_seconds: float
    link_seconds: float
    prefill_seconds: float
    """Of one prompt, computing alone."""
    efficiency: float
    dollars_per_million_output: float
    dollars_per_million_input: float

    @property
    def bound(self) -> Literal["memory", "compute"]:
        return "memory" if self.read_seconds >= self.compute_seconds else "compute"

    @property
    def step_seconds(self) -> float:
        """The floor of one decoding step of the batch."""
        return max(self.read_seconds, self.compute_seconds) + self.link_seconds


def experts_read(parameters: Parameters, batch: int) -> float:
    """Expected parameters read in a step: all that are always active, and every expert that any of ``batch`` tokens
    chose, if each chooses evenly: ``1 - (1 - share) ** batch`` of them."""
    routed = parameters.by_part.get("experts", 0)
    if not routed:
        return parameters.multiplied
    share = 1 - (parameters.total - parameters.active) / routed
    return parameters.multiplied - share * routed + routed * (1 - (1 - share) ** batch)


def plan(
    model: Decoder,
    device: Device,
    work: Workload,
    *,
    efficiency: float = 0.6,
    dollars_per_hour: float | None = None,
    most_devices: int = 64,
) -> Plan:
    """``efficiency`` is the share of the roofline that is expected to be reached; it scales money, not floors."""
    parameters = count_parameters(model)
    cache = cache_cost(model, KV_BYTES[work.kv])
    weight_bytes = parameters.total * WEIGHT_BYTES[work.weights]
    cache_bytes = work.batch * cache.bytes_at(work.context)
    fit = smallest_fit(model, weight_bytes + cache_bytes, device, most_devices)
    number = fit.devices if fit else math.ceil((weight_bytes + cache_bytes) / (USABLE * device.memory))
    side_by_side = fit.tensor if fit else number

    flops = token_flops(model, work.context).total
    read = experts_read(parameters, work.batch) * WEIGHT_BYTES[work.weights] + cache_bytes
    read_seconds = read / (side_by_side * device.bandwidth)
    compute_seconds = work.batch * flops / (side_by_side * device.flops)
    link_seconds = _link_seconds(model, fit, work.batch, device)

    prompt = work.prompt or work.context
    prefill_flops = prompt * token_flops(model, max(1, prompt // 2)).total  # on average, half the prompt is behind
    prefill_seconds = prefill_flops / (side_by_side * device.flops)
    price = (device.dollars_per_hour if dollars_per_hour is None else dollars_per_hour) * number / 3600
    step = max(read_seconds, compute_seconds) + link_seconds
    return Plan(
        parameters=parameters,
        cache=cache,
        weight_bytes=weight_bytes,
        cache_bytes=cache_bytes,
        fit=fit,
        flops_per_token=flops,
        read_seconds=read_seconds,
        compute_seconds=compute_seconds,
        link_seconds=link_seconds,
        prefill_seconds=prefill_seconds,
        efficiency=efficiency,
        dollars_per_million_output=1e6 * price * step / work.batch / efficiency,
        dollars_per_million_input=1e6 * price * prefill_seconds / prompt / efficiency,
    )


def smallest_fit(model: Decoder, needed_bytes: float, device: Device, most_devices: int) -> Fit | None:
    """The fewest devices: tensor parallel first (up to 8, one machine) where heads divide evenly among them, then
    stages of that."""
    heads = [heads for layer in model.config.layers if (heads := getattr(layer.mixer, "num_heads", None))]
    sizes = [size for size in (1, 2, 4, 8) if size <= most_devices]
    tensors = [size for size in sizes if all(head % size == 0 for head in heads)]
    stages = range(2, min(model.config.num_layers, most_devices // tensors[-1]) + 1)
    fits = [*(Fit(tensor, 1) for tensor in tensors), *(Fit(tensors[-1], stage) for stage in stages)]
    return next((fit for fit in fits if needed_bytes <= USABLE * device.memory * fit.devices), None)


def _link_seconds(model: Decoder, fit: Fit | None, batch: int, device: Device) -> float:
    """Tensor parallelism sums the stream over devices twice per layer; a ring sends ``2 (n - 1) / n`` of it, twice over
    the wire. Pipeline stages hand it on once each."""
    if fit is None:
        return 0.0
    stream = batch * model.config.hidden_size * 2
    summed = 2 * model.config.num_layers * stream * 2 * (fit.tensor - 1) / fit.tensor
    return (summed + (fit.pipeline - 1) * stream) / device.link
