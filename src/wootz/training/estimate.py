"""What a recipe will take, before it is begun: arithmetic, memory, time. Calculated, but for the speed of this CPU.

Arithmetic is 6 operations per parameter and token (2 forward, 4 backward; the table of embeddings is only looked up)
and 12 per layer, token and place looked at for attention, of which causal rows need half. Recomputation adds a forward
pass. Memory per weight is 4 bytes each for weight, gradient and Adam's two averages, and 2 more for a copy in 16 bits;
activations are counted as what autograd keeps of each layer (arXiv 2205.05198, without dropout).
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import torch

from wootz.models.planning.hardware import device
from wootz.training.recipe import Recipe

UTILISATION = {"cpu": 0.6, "accelerator": 0.40}
"""Of the device's rate of products that a step is expected to reach."""
USABLE = 0.9


@dataclass(frozen=True)
class Estimate:
    num_parameters: int
    tokens: int
    steps: int
    flops: float
    """Of the whole pretraining."""
    seconds: float
    state_bytes: float
    """Per device: weights, gradients, the optimiser's averages."""
    activation_bytes: float
    """Per device."""
    device_bytes: float | None
    """What the device has; None of a CPU."""

    @property
    def bytes(self) -> float:
        return self.state_bytes + self.activation_bytes

    @property
    def fits(self) -> bool:
        return self.device_bytes is None or self.bytes <= USABLE * self.device_bytes


def estimate(recipe: Recipe) -> Estimate:
    dial, model, mesh = recipe.dial, recipe.model, recipe.mesh
    embeddings = recipe.tokenizer.vocab_size * dial.hidden_size
    multiplied = dial.num_parameters - (0 if model.tie_embeddings else embeddings)
    per_token = 6 * multiplied + 6 * recipe.depth * model.context * dial.hidden_size
    if recipe.pretrain.recompute:
        per_token *= 4 / 3
    flops = float(per_token * dial.tokens)

    rows = dial.micro_batch_rows * model.context
    half = recipe.pretrain.precision != "fp32"
    numbers = 2 if half else 4
    layer = rows * (10 * dial.hidden_size + 4 * dial.intermediate_size) * numbers
    kept = (
        recipe.depth * rows * dial.hidden_size * numbers + layer if recipe.pretrain.recompute else recipe.depth * layer
    )
    cut = 8 if mesh.zero == 1 else 18 if half else 16  # bytes that are divided among ranks
    whole = (18 if half else 16) - cut
    if mesh.device == "cpu":
        rate, kind, has = matmul_rate(), "cpu", None
    else:
        hardware = device(mesh.device)
        rate, kind, has = hardware.flops, "accelerator", hardware.memory
    return Estimate(
        num_parameters=dial.num_parameters,
        tokens=dial.tokens,
        steps=dial.steps,
        flops=flops,
        seconds=flops / (rate * UTILISATION[kind] * mesh.devices),
        state_bytes=dial.num_parameters * (whole + cut / mesh.devices),
        activation_bytes=kept / (mesh.tensor * mesh.pipeline) * min(mesh.pipeline, dial.accumulate),
        device_bytes=has,
    )


def matmul_rate(size: int = 768, seconds: float = 0.3) -> float:
    """Operations per second of this CPU, as it is just now, in float32 products of squares."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    torch.mm(left, right)
    started, done = perf_counter(), 0
    while perf_counter() - started < seconds:
        torch.mm(left, right)
        done += 1
    return done * 2 * size**3 / (perf_counter() - started)
