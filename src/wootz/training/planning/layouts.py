"""Which layout for a model on so many devices: all that fit, by the time one step is expected to take.

The rule of the field falls out of the arithmetic: tensor parallelism speaks in every layer, so it stays among devices
that are linked directly; a pipeline sends one activation per stage and micro-batch, and pays with its bubble,
``(p - 1) / (m + p - 1)``; sharding takes the rest, since it speaks once per layer and step whatever the batch.

Times are a model: products at ``efficiency`` of the peak, and communication that overlaps with computing as far as it
can (sharding) or not at all (tensor, pipeline's bubble).
"""

from __future__ import annotations

from dataclasses import dataclass

from wootz.core.errors import BadRequestError
from wootz.models.blocks.attention import Attention
from wootz.models.blocks.moe import MoE
from wootz.models.decoder import Decoder
from wootz.models.parallel.pipeline import bubble
from wootz.models.planning.accounting import count_parameters
from wootz.models.planning.hardware import Device
from wootz.models.planning.roofline import USABLE
from wootz.models.planning.tensor_parallel import NETWORK_BANDWIDTH, PER_NODE
from wootz.training.parallel.layout import Layout
from wootz.training.planning.memory import (
    Checkpointing,
    activation_bytes,
    largest_layer,
    logit_bytes,
    state_bytes,
)

BUFFERS = 2e9
"""Of the communication library, the allocator and the driver."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is to be trained on."""

    batch_tokens: int
    """Of one optimiser step, over all devices."""
    length: int
    gradient_bytes: float = 4


@dataclass(frozen=True)
class Candidate:
    layout: Layout
    checkpointing: Checkpointing
    micro_batches: int
    """Passes of one row each in a step, on each reader."""
    memory: dict[str, float]
    """Bytes of the fullest device, by what they are for."""
    fits: bool
    compute_seconds: float
    tensor_seconds: float
    expert_seconds: float
    shard_seconds: float
    """Exposed: what is beyond the computing that it overlaps with."""
    bubble: float

    @property
    def step_seconds(self) -> float:
        busy = self.compute_seconds + self.tensor_seconds + self.expert_seconds
        return busy / (1 - self.bubble) + self.shard_seconds

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def name(self) -> str:
        axes = (
            ("TP", self.layout.tensor),
            ("PP", self.layout.pipeline),
            ("FSDP", self.layout.shard),
            ("EP", self.layout.expert),
        )
        return " x ".join(f"{axis}{size}" for axis, size in axes if size > 1) or "one device"


def candidates(
    model: Decoder, device: Device, num_devices: int, work: Training, *, efficiency: float = 0.5
) -> list[Candidate]:
    """Every layout that divides evenly, those that fit first, fastest first."""
    counted, largest = count_parameters(model), largest_layer(model)
    kept: dict[Checkpointing, float] = {way: activation_bytes(model, work.length, checkpointing=way) for way in WAYS}
    shape = _Shape(
        counted.total,
        counted.by_part.get("experts", 0),
        sum(module.config.router.top_k for module in model.modules() if isinstance(module, MoE)),
        largest,
        kept,
        step_flops(model, work),
    )
    found = []
    for tensor in _divisors(min(PER_NODE, num_devices)):
        for pipeline in _divisors(num_devices // tensor):
            shard = num_devices // tensor // pipeline
            if num_devices % (tensor * pipeline) or not _divides(model, tensor, pipeline, shard, work):
                continue
            for expert in _expert_sizes(model, shard, tensor):
                layout = Layout(tensor=tensor, pipeline=pipeline, shard=shard, expert=expert)
                for way in WAYS:
                    found.append(_candidate(model, shape, device, layout, work, way, efficiency))
    if not found:
        raise BadRequestError(
            f"no layout of {num_devices} devices divides this model and a batch of {work.batch_tokens:,} tokens",
            hint="a batch is rows of --ctx tokens, of which every reader needs equally many",
        )
    return sorted(found, key=lambda candidate: (not candidate.fits, candidate.step_seconds))


WAYS: tuple[Checkpointing, ...] = ("none", "full")


@dataclass(frozen=True)
class _Shape:
    """What all layouts of one model have in common."""

    parameters: int
    experts: int
    """Of these, in experts."""
    choices: float
    """Experts that a token visits, over all layers."""
    largest_layer: int
    activations: dict[Checkpointing, float]
    """Bytes of one row."""
    flops: float


def _candidate(
    model: Decoder,
    shape: _Shape,
    device: Device,
    layout: Layout,
    work: Training,
    checkpointing: Checkpointing,
    efficiency: float,
) -> Candidate:
    rows = work.batch_tokens // work.length // layout.shard
    state = state_bytes(
        shape.parameters,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        shards=layout.shard,
        zero=3 if layout.pipeline == 1 else 2,
        gradient_bytes=work.gradient_bytes,
    )
    # 1F1B: the first stage has as many micro-batches under way as there are stages.
    under_way = min(rows, layout.pipeline)
    activations = shape.activations[checkpointing] / layout.tensor
    gathered = 2 * 2 * shape.largest_layer / layout.tensor if layout.shard > 1 and layout.pipeline == 1 else 0.0
    memory = {
        "weights": state.weights,
        "gradients": state.gradients,
        "moments": state.moments,
        "master": state.master,
        "activations": activations * under_way / layout.pipeline,
        "logits": logit_bytes(model, work.length),
        "gathered": gathered,
        "buffers": BUFFERS,
    }
    compute = shape.flops * (4 / 3 if checkpointing == "full" else 1)
    compute_seconds = compute / layout.num_ranks / device.flops / efficiency
    passes = 3 if checkpointing == "full" else 2
    # An expert's parameters are gathered among those who have the same ones.
    sharded = shape.parameters - shape.experts * (1 - 1 / layout.expert)
    sharded *= 2 / layout.tensor / layout.pipeline
    times = 2 if layout.pipeline == 1 else 1
    # A batch that is larger than one pass is gathered for again in each, unless stages keep what they have.
    sent = sharded * (times * (rows if layout.pipeline == 1 else 1) + work.gradient_bytes / 2)
    sent *= (layout.shard - 1) / layout.shard
    link = device.link if layout.num_ranks <= PER_NODE else min(device.link, NETWORK_BANDWIDTH)
    stream = 2 * work.length * rows * model.config.hidden_size * (layout.tensor - 1) / layout.tensor
    travelling = 2 * work.length * rows * model.config.hidden_size * shape.choices / layout.pipeline
    expert_seconds = 2 * passes * travelling * (layout.expert - 1) / layout.expert / device.link
    tensor_seconds = 4 * passes * len(model.layers) / layout.pipeline * stream / device.link
    return Candidate(
        layout,
        checkpointing,
        rows,
        memory,
        sum(memory.values()) <= USABLE * device.memory + BUFFERS,
        compute_seconds,
        tensor_seconds,
        expert_seconds,
        max(0.0, sent / link - compute_seconds),
        bubble(layout.pipeline, rows) if layout.pipeline > 1 else 0.0,
    )


def step_flops(model: Decoder, work: Training) -> float:
    """``6 N`` for each token, and scores and sums of causal attention: ``6 T H d`` for each token and layer."""
    mixers = [module.config for module in model.modules() if isinstance(module, Attention)]
    attention = sum(6 * work.length * mixer.num_heads * mixer.head_dim for mixer in mixers)
    return work.batch_tokens * (6 * count_parameters(model).multiplied + attention)


def _divides(model: Decoder, tensor: int, pipeline: int, shard: int, work: Training) -> bool:
    heads = [module.config.num_kv_heads for module in model.modules() if isinstance(module, Attention)]
    rows, rest = divmod(work.batch_tokens, work.length)
    has_experts = any(isinstance(module, MoE) for module in model.modules())
    return (
        all(head % tensor == 0 for head in heads)
        and not (has_experts and tensor > 1)
        and pipeline <= len(model.layers)
        and not (pipeline > 1 and model.config.tie_embeddings)
        and not rest
        and rows % shard == 0
        and rows // shard >= pipeline
    )


def _expert_sizes(model: Decoder, shard: int, tensor: int) -> list[int]:
    numbers = {module.config.router.num_experts for module in model.modules() if isinstance(module, MoE)}
    if not numbers or tensor > 1:
        return [1]
    return [size for size in _divisors(min(shard, PER_NODE)) if shard % size == 0 and min(numbers) % size == 0]


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
