"""Learning-rate schedules: from a step to the multiplier of the peak rate.

A schedule is a pure function of the step, so a run that is taken up again needs nothing but its step to go on exactly,
and it is clamped past its end: a cosine that is run on does not rise again. Lengths are shares of the run (below 1) or
steps (from 1 on). Every schedule is a warmup, a *course*, and optionally a cooldown of the last steps down to
`minimum`:

    warmup      (s + 1) / W, so that the first step is no standstill and step W - 1 is the peak
    course      constant | linear | cosine | step | multistep | power | inverse-sqrt | one-cycle | cyclical
    cooldown    from what the course says to `minimum`, reached in the last step

WSD (warmup, stable, decay; MiniCPM, arXiv 2404.06395) is the constant course with a cooldown. Courses that do not know
where the run ends (`EXTENDABLE`) can be trained further and cooled down from any point: `extended`, `branched`.

Sources: cosine, arXiv 1608.03983; inverse square root, arXiv 1706.03762; one-cycle and cyclical, arXiv 1506.01186 and
1708.07120; power, arXiv 2408.13359; shapes of the cooldown, arXiv 2405.18392.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from wootz.core.errors import ConfigError

Schedule = Callable[[int], float]
"""The multiplier of the peak learning rate at a step, counted from 0."""

Length = float
"""A share of the run if below 1, steps otherwise."""

EXTENDABLE = ("constant", "wsd", "power", "inverse-sqrt")
"""Where the run ends does not matter before its cooldown begins."""

NAMES = (*EXTENDABLE, "linear", "cosine", "step", "multistep", "one-cycle", "cyclical")

_WARMUP = {"one-cycle": 0.3, "cyclical": 0.0}
_COOLDOWN = {"wsd": 0.1}
_ONE_CYCLE_START = 1 / 25  # of the peak; Smith's choice, and PyTorch's


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    name: str = "cosine"
    warmup: Length | None = None
    """None: 2 % of the run, for one-cycle 30 %, for cyclical nothing."""
    cooldown: Length | None = None
    """None: for WSD a tenth of the run, otherwise nothing."""
    minimum: float = 0.1
    """Of the peak, at the end (and between cycles). 0 wastes the last steps."""
    shape: Literal["linear", "cosine", "1-sqrt"] = "linear"
    """Of the cooldown."""
    gamma: float = 0.1
    """step, multistep: the factor at each milestone."""
    every: Length = 0.3
    """step: from one milestone to the next."""
    milestones: tuple[Length, ...] = (0.5, 0.75)
    """multistep: where they are."""
    cycle: Length = 0.25
    """cyclical: up and down again."""
    knee: Length | None = None
    """power: the step up to which the peak holds (see `power_knee`). None: the end of the warmup."""
    exponent: float = -0.51
    """power: of the steps beyond the knee."""


def build_schedule(config: ScheduleConfig, total_steps: int) -> Schedule:
    """The multiplier at each step of a run of ``total_steps``. Raises ConfigError if warmup and cooldown do not fit."""
    if config.name not in NAMES:
        raise ConfigError(f'there is no schedule "{config.name}"', hint=f"one of {', '.join(sorted(NAMES))}")
    if not 0 <= config.minimum <= 1:
        raise ConfigError(f"a schedule's minimum is a share of its peak from 0 to 1, not {config.minimum}")
    warmup, cooldown = warmup_steps(config, total_steps), cooldown_steps(config, total_steps)
    if warmup + cooldown > max(total_steps, 1):
        raise ConfigError(
            f"{warmup} steps of warmup and {cooldown} of cooldown do not fit into {total_steps} steps",
            hint="give shares of the run, such as warmup = 0.02",
        )
    course = _course(config, total_steps, warmup)
    start = total_steps - cooldown

    def multiplier(step: int) -> float:
        if step < warmup and config.name != "one-cycle":
            return (step + 1) / warmup
        if step < start or not cooldown:
            return course(min(step, total_steps))
        done = min(1.0, (step - start + 1) / cooldown)
        top = course(max(start - 1, warmup))
        bottom = min(config.minimum, top)
        return bottom + (top - bottom) * _remaining(config.shape, done)

    return multiplier


def _course(config: ScheduleConfig, total: int, warmup: int) -> Schedule:
    low, high = config.minimum, 1 - config.minimum
    match config.name:
        case "linear":
            return lambda step: low + high * (1 - _progress(step, warmup, total))
        case "cosine":
            return lambda step: low + high * _remaining("cosine", _progress(step, warmup, total))
        case "step":
            every = max(1, _steps(config.every, total))
            return lambda step: config.gamma ** (step // every)
        case "multistep":
            milestones = [_steps(milestone, total) for milestone in config.milestones]
            return lambda step: config.gamma ** sum(step >= milestone for milestone in milestones)
        case "power" | "inverse-sqrt":
            exponent = config.exponent if config.name == "power" else -0.5
            knee = max(1.0, warmup if config.knee is None else _steps(config.knee, total))
            return lambda step: min(1.0, ((step + 1) / knee) ** exponent)
        case "one-cycle":
            return _one_cycle(low, warmup - 1, total - 1)
        case "cyclical":
            half = max(1, _steps(config.cycle, total)) / 2
            return lambda step: low + high * (1 - abs((step - warmup) / half % 2 - 1))
        case _:
            return lambda step: 1.0


def _one_cycle(minimum: float, top: int, last: int) -> Schedule:
    """Cosines up to the step ``top`` and down to the step ``last``."""

    def course(step: int) -> float:
        if step < top:
            return 1 + (_ONE_CYCLE_START - 1) * _remaining("cosine", step / top)
        return minimum + (1 - minimum) * _remaining("cosine", _progress(step, top, last))

    return course


# --- going on ---------------------------------------------------------------------------------------------------------


def last_stable_step(config: ScheduleConfig, total_steps: int) -> int:
    """How many steps are made before the cooldown: the checkpoint after these must be kept, for it is what can be
    trained further. The whole run where nothing is cooled down."""
    return total_steps - cooldown_steps(config, total_steps)


def extended(config: ScheduleConfig, total_steps: int, new_total_steps: int) -> ScheduleConfig:
    """The same schedule for a longer run, from the checkpoint of `last_stable_step`: it says what the old one said up
    to there. Raises ConfigError for a schedule that would have been another from its start (a cosine must be rerun)."""
    _must_be_extendable(config, total_steps)
    if new_total_steps < last_stable_step(config, total_steps):
        raise ConfigError(f"a run of {total_steps} steps cannot be extended to {new_total_steps}")
    return _in_steps(config, total_steps)


def branched(config: ScheduleConfig, total_steps: int, at: int, cooldown: int) -> tuple[ScheduleConfig, int]:
    """A cooldown of ``cooldown`` steps from the checkpoint after ``at`` steps of a stable course: the schedule to go on
    with, and how many steps that makes in all."""
    _must_be_extendable(config, total_steps)
    if at > last_stable_step(config, total_steps) or at < warmup_steps(config, total_steps):
        raise ConfigError(
            f"after {at} of {total_steps} steps the rate is not stable; branch from an earlier checkpoint"
        )
    if cooldown < 1:
        raise ConfigError("a cooldown takes at least one step")
    return replace(_in_steps(config, total_steps), cooldown=float(cooldown)), at + cooldown


def _must_be_extendable(config: ScheduleConfig, total_steps: int) -> None:
    if config.name not in EXTENDABLE:
        raise ConfigError(
            f"a {config.name} schedule of {total_steps} steps cannot be extended: every step of it depends on its end",
            hint=f"run it again, or use one of {', '.join(EXTENDABLE)}",
        )


def _in_steps(config: ScheduleConfig, total_steps: int) -> ScheduleConfig:
    """With what was a share of the old run as steps, so that it does not grow with the new one."""
    knee = config.knee if config.knee is None else float(_steps(config.knee, total_steps))
    return replace(config, warmup=float(warmup_steps(config, total_steps)), knee=knee)


def power_knee(peak: float, batch_size: int, tokens_per_step: int, a: float = 4.0, b: float = -0.51) -> float:
    """At which step the power law ``batch_size * a * tokens ** b`` falls below the peak rate: the `knee` to give to a
    power schedule with ``exponent = b``. a and b are the paper's, under muP (arXiv 2408.13359)."""
    return max(1.0, (peak / (batch_size * a)) ** (1 / b) / tokens_per_step)


# --- lengths ----------------------------------------------------------------------------------------------------------


def warmup_steps(config: ScheduleConfig, total_steps: int) -> int:
    return _steps(_WARMUP.get(config.name, 0.02) if config.warmup is None else config.warmup, total_steps)


def cooldown_steps(config: ScheduleConfig, total_steps: int) -> int:
    return _steps(_COOLDOWN.get(config.name, 0.0) if config.cooldown is None else config.cooldown, total_steps)


def _steps(length: Length, total_steps: int) -> int:
    if length < 0 or not math.isfinite(length):
        raise ConfigError(f"{length} is no length in a schedule", hint="a share below 1, or a number of steps")
    return round(length * total_steps) if length < 1 else round(length)


def _progress(step: int, first: int, last: int) -> float:
    return min(1.0, max(0.0, (step - first) / max(1, last - first)))


def _remaining(shape: str, done: float) -> float:
    """From 1 to 0 while ``done`` goes from 0 to 1."""
    match shape:
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        case "1-sqrt":
            return 1 - math.sqrt(done)
        case _:
            return 1 - done
