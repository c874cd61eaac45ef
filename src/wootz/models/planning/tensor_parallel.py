"""What more devices per layer gain, and when they stop gaining: the cost of a step under tensor parallelism.

Per layer, n devices read their share of weights and cache, or compute their share, whichever is slower; then two sums
over the residual stream, each of which a ring makes in ``2 (n - 1)`` hops with ``2 (n - 1) / n`` of the stream:

    step(n) = max(bytes / (n * bandwidth), flops / (n * peak)) + 2 * layers * (hops * latency + volume / link)

The first term falls with n, the latency rises, and the volume barely changes. So there is a size at which another
doubling is not worth its devices. Beyond one machine (`PER_NODE` devices) hops go over the network, which is an order
slower: hence the placement rule, tensor parallel inside a machine and stages of a pipeline across machines, whose one
hop per stage a network carries with ease.
"""

from __future__ import annotations

from dataclasses import dataclass

from wootz.models.decoder import Decoder
from wootz.models.planning.accounting import cache_cost, count_parameters, token_flops
from wootz.models.planning.hardware import Device
from wootz.models.planning.roofline import KV_BYTES, WEIGHT_BYTES, Workload, experts_read

PER_NODE = 8
"""Devices that are linked directly."""
NODE_LATENCY, NETWORK_LATENCY = 1.5e-6, 8e-6
"""Seconds per hop, of a small message: typical, to be replaced by what one measures."""
NETWORK_BANDWIDTH = 50e9
"""Bytes per second and device between machines (400 Gb/s)."""
LEAST_SAVED = 0.2
"""A doubling that saves a smaller share of the step is not worth it."""


@dataclass(frozen=True)
class TensorCost:
    """Of one step: ``tokens_per_sequence`` tokens of each sequence of a batch."""

    devices: int
    work_seconds: float
    """Reading or computing, whichever is slower."""
    link_seconds: float
    alone_seconds: float
    """The whole step on one device, if it fitted."""

    @property
    def seconds(self) -> float:
        return self.work_seconds + self.link_seconds

    @property
    def speedup(self) -> float:
        return self.alone_seconds / self.seconds

    @property
    def efficiency(self) -> float:
        """Speedup per device."""
        return self.speedup / self.devices


def tensor_costs(
    model: Decoder,
    device: Device,
    work: Workload,
    *,
    tokens_per_sequence: int = 1,
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16),
) -> list[TensorCost]:
    """For each size that divides all layers' heads. One token per sequence is a decoding step, many are a prefill."""
    heads = [heads for layer in model.config.layers if (heads := getattr(layer.mixer, "num_heads", None))]
    tokens = work.batch * tokens_per_sequence
    weights = experts_read(count_parameters(model), tokens) * WEIGHT_BYTES[work.weights]
    read = weights + work.batch * cache_cost(model, KV_BYTES[work.kv]).bytes_at(work.context)
    flops = tokens * token_flops(model, work.context).total
    alone = max(read / device.bandwidth, flops / device.flops)
    return [
        TensorCost(size, alone / size, _link_seconds(model, device, tokens, size), alone)
        for size in sizes
        if all(number % size == 0 for number in heads)
    ]


def _link_seconds(model: Decoder, device: Device, tokens: int, size: int) -> float:
    if size == 1:
        return 0.0
    inside = size <= PER_NODE
    latency = NODE_LATENCY if inside else NETWORK_LATENCY
    bandwidth = device.link if inside else min(device.link, NETWORK_BANDWIDTH)
    stream = 2 * tokens * model.config.hidden_size
    one_sum = 2 * (size - 1) * latency + 2 * (size - 1) / size * stream / bandwidth
    return 2 * model.config.num_layers * one_sum


def sweet_spot(costs: list[TensorCost]) -> TensorCost:
    """The last size that its doubling still paid for."""
    best = costs[0]
    for cost in costs[1:]:
        if cost.seconds > (1 - LEAST_SAVED) * best.seconds:
            break
        best = cost
    return best
