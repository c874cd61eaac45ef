"""What training keeps per parameter: weights, gradients, the optimiser's state, and float32 masters where the weights
are halves. Activations come on top; they depend on the batch and not on the optimiser.

State follows the shape of each parameter: Adafactor keeps a row and a column of a matrix in place of the matrix, 8-bit
AdamW a scale for every block. `state_bytes` is held to the bytes of real state by a test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from wootz.core.errors import ConfigError
from wootz.training.optimizers.algorithms import ALGORITHMS, algorithm

TOO_HEAVY = 1.5
"""State of more than this times the weights is worth sharding, quantising, or another optimiser."""

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}

_TYPICAL = (4096, 4096)
_BLOCK, _SMALLEST = 256, 4096  # AdamW8bit's defaults


def state_bytes(name: str, shape: tuple[int, ...], *, hidden: bool = True) -> int:
    """Of one parameter, without step counters. ``hidden``: no embedding and no head, which Muon leaves to AdamW."""
    count = math.prod(shape)
    match name:
        case "adafactor" if len(shape) > 1:
            return 4 * (count // shape[-1] + count // shape[-2])
        case "adafactor":
            return 4 * count
        case "adamw-8bit" if count >= _SMALLEST:
            return 2 * count + 2 * 4 * -(-count // _BLOCK)
        case "adamw-8bit":
            return 8 * count
        case "muon" if not (hidden and len(shape) == 2):
            return 8 * count
        case _:
            return 4 * algorithm(name).buffers * count


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each device."""

    weights: float
    gradients: float
    master: float
    state: float
    state_per_parameter: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.master + self.state


def plan_memory(
    num_parameters: float,
    name: str = "adamw",
    *,
    weights: str = "bf16",
    gradients: str | None = None,
    master: bool = True,
    shards: int = 1,
    shapes: Iterable[tuple[int, ...]] = (_TYPICAL,),
) -> MemoryPlan:
    """``shards``: over how many devices state and masters are spread (ZeRO-1; weights and gradients stay whole).
    ``master``: float32 copies of half-precision weights. ``shapes``: of the parameters, for what depends on them."""
    if weights not in WEIGHT_BYTES or (gradients or weights) not in WEIGHT_BYTES:
        raise ConfigError(f"weights and gradients are {', '.join(WEIGHT_BYTES)}, not {weights}, {gradients or weights}")
    if num_parameters <= 0 or shards < 1:
        raise ConfigError("a plan needs parameters and at least one device")
    shapes = list(shapes)
    each = sum(state_bytes(name, shape) for shape in shapes) / sum(math.prod(shape) for shape in shapes)
    masters = 4 * num_parameters if master and WEIGHT_BYTES[weights] < 4 else 0.0
    return MemoryPlan(
        weights=WEIGHT_BYTES[weights] * num_parameters,
        gradients=WEIGHT_BYTES[gradients or weights] * num_parameters,
        master=masters / shards,
        state=each * num_parameters / shards,
        state_per_parameter=each,
    )


def advice(plan: MemoryPlan, name: str) -> str | None:
    """What to do about a state that is too heavy, or None."""
    if plan.state <= TOO_HEAVY * plan.weights:
        return None
    lighter = [other for other in ("adamw-8bit", "lion", "muon", "adafactor") if _light(other) < _light(name)]
    choices = ", ".join(f"{other}: {_light(other):.2g} B" for other in lighter)
    return (
        f"the state is {plan.state / plan.weights:.1f} times the weights: shard it over devices (ZeRO-1 and up), "
        f"or use a lighter optimiser ({choices} per parameter)"
    )


def table() -> dict[str, float]:
    """Bytes of state per parameter of a large matrix, by optimiser."""
    return {name: _light(name) for name in ALGORITHMS}


def _light(name: str) -> float:
    return state_bytes(name, _TYPICAL) / math.prod(_TYPICAL)
