"""What a load sweep means: whether it keeps its objectives, where its knee is, and what would have to change.

All of it works on the summaries of `wootz.app.load.Level`, and on what the engine counted meanwhile.

- *Objectives*: TTFT p95, ITL p95 and the share of errors, each against its limit; a value equal to the limit keeps it.
- *Knee*: the level after which more callers bring little more throughput and only wait longer (Kneedle, ICDCSW '11:
  where the normalised curve is furthest above its chord).
- *Bound*: how much of the device's arithmetic and of its memory's bandwidth is used, by the model's own numbers:
  2 operations per parameter and token, all weights read once a step. Experts and the cache's traffic are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wootz.models.planning.hardware import Device

HEADROOM = 0.7
"""Below this share of both, neither arithmetic nor memory is the limit."""
SATURATED = 0.9
CLEAR_OF_THE_CHORD = 0.05


@dataclass(frozen=True)
class Objectives:
    """Milliseconds, and a share of all requests."""

    time_to_first_token: float | None = 500.0
    inter_token_latency: float | None = 50.0
    errors: float | None = 0.001


@dataclass(frozen=True)
class Check:
    name: str
    measured: float
    limit: float

    @property
    def kept(self) -> bool:
        return self.measured <= self.limit


def check(level: dict[str, Any], objectives: Objectives) -> list[Check]:
    """Each objective that has a limit, as this level kept it."""
    measured = (
        ("TTFT p95 (ms)", 1000 * level["time_to_first_token"]["p95"], objectives.time_to_first_token),
        ("ITL p95 (ms)", 1000 * level["inter_token_latency"]["p95"], objectives.inter_token_latency),
        ("errors (share)", level["failed"] / level["requests"], objectives.errors),
    )
    return [Check(name, value, limit) for name, value, limit in measured if limit is not None]


def knee(levels: list[dict[str, Any]]) -> int | None:
    """The concurrency of the knee; None where the curve has none yet (or there are fewer than three levels)."""
    levels = sorted(levels, key=lambda level: level["concurrency"])
    x = [math.log2(level["concurrency"]) for level in levels]
    y = [level["output_tokens_per_second"] for level in levels]
    if len(levels) < 3 or max(y) <= y[0]:
        return None
    above = [(b - y[0]) / (max(y) - y[0]) - (a - x[0]) / (x[-1] - x[0]) for a, b in zip(x, y, strict=True)]
    furthest = max(range(len(above)), key=above.__getitem__)
    return levels[furthest]["concurrency"] if above[furthest] > CLEAR_OF_THE_CHORD else None


@dataclass(frozen=True)
class Use:
    """Shares of what the device can do."""

    compute: float
    bandwidth: float


def use(level: dict[str, Any], device: Device, bytes_per_weight: float) -> Use | None:
    """From what the engine counted during the level; None where the server tells nothing of its engine."""
    counted = level.get("engine")
    if not counted or not counted["parameters"]:
        return None
    seconds, parameters = level["wall_seconds"], counted["parameters"]
    tokens = counted["prompt_tokens_computed"] + counted["tokens_generated"]
    return Use(
        compute=2 * parameters * tokens / seconds / device.flops,
        bandwidth=parameters * bytes_per_weight * counted["steps"] / seconds / device.bandwidth,
    )


def verdict(used: Use) -> str:
    """In words, what limits the engine and what would help."""
    if used.compute < HEADROOM and used.bandwidth < HEADROOM:
        return "headroom: neither arithmetic nor memory is the limit; send more, or look at the waiting between steps"
    if used.bandwidth >= used.compute:
        if used.bandwidth >= SATURATED:
            return "memory-bound: quantise the weights, or batch more, so that each read serves more tokens"
        return "memory-bound soon: more callers still share the reads; quantise when bandwidth nears its peak"
    if used.compute >= SATURATED:
        return "compute-bound: more devices, lower precision, or fewer prompt tokens (a cached prefix costs none)"
    return "compute-bound soon: shorten prompts or share their prefixes"


# --- money ----------------------------------------------------------------------------------------------------

HOURS_A_MONTH = 730


@dataclass(frozen=True)
class Cost:
    """Dollars per million tokens, at the measured rate. ``output_alone`` charges everything to the output tokens; the
    other two share it out, an output token costing ``ratio`` input tokens."""

    output_alone: float
    input: float
    output: float


def cost(dollars_per_hour: float, input_rate: float, output_rate: float, *, ratio: float = 4.0) -> Cost:
    """Rates in tokens per second. Cost = hourly price / 3600 / rate * 10^6."""
    a_second = dollars_per_hour / 3600 * 1e6
    input_price = a_second / (input_rate + ratio * output_rate)
    return Cost(a_second / output_rate, input_price, ratio * input_price)


@dataclass(frozen=True)
class BreakEven:
    """Against an API's prices: how many times dearer it is when our machine is busy, and from which volume on (tokens a
    month, input and output together) a machine that is rented all month is cheaper. None: the machine cannot
    compute so many."""

    times_dearer: float
    tokens_a_month: float | None


def break_even(
    dollars_per_hour: float, input_rate: float, output_rate: float, *, api_input: float, api_output: float
) -> BreakEven:
    """API prices in dollars per million tokens; the same mix of input and output is bought there."""
    rate = input_rate + output_rate
    api = (input_rate * api_input + output_rate * api_output) / rate / 1e6
    ours = dollars_per_hour / 3600 / rate
    volume = dollars_per_hour * HOURS_A_MONTH / api
    return BreakEven(api / ours, volume if volume <= rate * 3600 * HOURS_A_MONTH else None)
