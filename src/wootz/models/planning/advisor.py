"""Which architecture for which work: a few rules of the field, each with the numbers behind it."""

from __future__ import annotations

from dataclasses import dataclass

from wootz.core.errors import BadRequestError
from wootz.models.planning.accounting import cache_cost, count_parameters, on_meta
from wootz.models.planning.presets import preset
from wootz.models.planning.roofline import WEIGHT_BYTES


@dataclass(frozen=True, kw_only=True)
class Needs:
    context: int = 8192
    memory_gb: float = 80.0
    """Of one device."""
    devices: int = 1
    low_latency: bool = False
    low_cost: bool = False
    reasoning: bool = False


@dataclass(frozen=True)
class Advice:
    choice: str
    example: str
    """A preset of that kind."""
    weights: str
    reasons: list[str]


def advise(needs: Needs) -> Advice:
    """Memory is sized by all parameters: an expert that a token does not use is still in memory."""
    if needs.context < 1 or needs.memory_gb <= 0 or needs.devices < 1:
        raise BadRequestError("context, memory and devices must be positive")
    if needs.memory_gb * needs.devices < 4:
        return _advice("small dense, 4-bit weights", "qwen3-0.6b", "int4", needs, "under 4 GB, weights decide")
    if needs.context > 262_144 and needs.low_latency:
        return _advice(
            "hybrid of state-space and attention layers", "jamba-v0.1", "int8", needs,
            "beyond 256K tokens, reading an attention cache for every token is what takes the time",
        )  # fmt: skip
    if needs.reasoning:
        return _advice(
            "dense, trained to think at length", "qwen3-32b", "bf16", needs,
            "long answers: tokens are spent at test time, and every one reads a cache that grows",
        )  # fmt: skip
    if needs.low_cost and needs.devices > 1:
        return _advice(
            "mixture of experts", "qwen3-30b-a3b", "bf16", needs,
            "the arithmetic of a small model and the memory of a large one: worth it where many devices share the load",
        )  # fmt: skip
    if needs.memory_gb <= 24 and needs.devices == 1:
        return _advice(
            "dense, 4-bit weights", "qwen3-8b", "int4", needs, "one card: quantised dense fits, experts do not"
        )
    return _advice("dense", "qwen3-8b", "bf16", needs, "chat and code without an extreme need: the simplest that works")


def _advice(choice: str, example: str, weights: str, needs: Needs, why: str) -> Advice:
    model = on_meta(preset(example))
    parameters = count_parameters(model)
    weight_gb = parameters.total * WEIGHT_BYTES[weights] / 1e9
    cache_gb = cache_cost(model).bytes_at(needs.context) / 1e9
    room = needs.memory_gb * needs.devices
    verdict = "fits" if weight_gb + cache_gb < 0.9 * room else "does NOT fit"
    return Advice(
        choice,
        example,
        weights,
        [
            why,
            f"{example}: {parameters.total / 1e9:.1f}B parameters ({parameters.active / 1e9:.1f}B active), "
            f"{weight_gb:.1f} GB in {weights}",
            f"its cache of one sequence of {needs.context:,} tokens: {cache_gb:.2f} GB",
            f"{weight_gb + cache_gb:.1f} GB {verdict} into {room:g} GB",
        ],
    )
