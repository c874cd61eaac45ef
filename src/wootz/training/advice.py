"""Rules of thumb about optimisers and rates, as functions that say which rule they follow: which optimiser and schedule
for what, whether a rate is in the usual range, and what to change along with what.

Rules, not laws: they come from the field's common practice, and where practice disagrees with itself they say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from wootz.core.errors import BadRequestError
from wootz.training.optimizers.algorithms import ALGORITHMS, algorithm


@dataclass(frozen=True)
class Choice:
    optimizer: str
    schedule: str
    learning_rate: tuple[float, float]
    why: str


CHOICES: dict[str, Choice] = {
    "simple": Choice("momentum", "constant", (0.01, 0.5), "convex or small: plain gradients do, and cost no state"),
    "vision": Choice("nag", "cosine", (0.05, 0.1), "convolutions: SGD with Nesterov's momentum generalises well"),
    "llm": Choice(
        "adamw", "wsd", (1e-4, 6e-4), "betas 0.9, 0.95, decay 0.1, clip 1.0; cosine where the budget is fixed"
    ),
    "memory-bound": Choice("lion", "cosine", (1e-5, 6e-5), "half of Adam's state; adamw-8bit: a quarter of it"),
    "unknown-length": Choice("schedule-free", "constant", (1e-4, 6e-4), "good at any step, with no end to plan for"),
    "wall-clock": Choice("sophia", "cosine", (1e-4, 4e-4), "fewer steps, by its paper; measure it beside muon"),
    "fine-tune": Choice(
        "adamw", "linear", (1e-5, 5e-5), "short warmup, decay to 0; layer_decay 0.8 spares lower layers"
    ),
}


def choose(situation: str) -> Choice:
    if situation not in CHOICES:
        raise BadRequestError(f'no advice for "{situation}"', hint=f"one of {', '.join(CHOICES)}")
    return CHOICES[situation]


@dataclass(frozen=True)
class RateCheck:
    usual: tuple[float, float]
    verdict: Literal["usual", "low", "high"]
    message: str


def check_rate(name: str, rate: float) -> RateCheck:
    """Is it where this optimiser's peak rates usually lie (``ALGORITHMS``)? Equal to a bound is inside."""
    low, high = algorithm(name).rates
    span = f"{low:g} to {high:g}"
    if low <= rate <= high:
        return RateCheck((low, high), "usual", f"{rate:g} is usual for {name} ({span})")
    if rate < low:
        return RateCheck(
            (low, high), "low", f"{rate:g} is {low / rate:.1f} times below what is usual for {name} ({span})"
        )
    more = ""
    if name == "lion" and rate <= ALGORITHMS["adamw"].rates[1]:
        more = ": it looks like a rate for AdamW, and Lion wants one about ten times smaller, with ten times the decay"
    return RateCheck(
        (low, high), "high", f"{rate:g} is {rate / high:.1f} times above what is usual for {name} ({span}){more}"
    )


@dataclass(frozen=True)
class CoChange:
    what: str
    factor: float
    """Multiply by this."""
    why: str


_ADAPTIVE = frozenset(ALGORITHMS) - {"sgd", "momentum", "nag", "schedule-free-sgd"}


def co_changes(
    optimizer: str,
    *,
    batch: float = 1.0,
    rate: float = 1.0,
    momentum: tuple[float, float] | None = None,
    decay_mode: Literal["decoupled", "independent"] = "decoupled",
) -> list[CoChange]:
    """What should change when the batch or the rate is multiplied by a factor, or momentum goes from one value to
    another; one at a time is clearest, several are multiplied."""
    algorithm(optimizer)
    if batch <= 0 or rate <= 0 or (momentum is not None and not all(0 <= beta < 1 for beta in momentum)):
        raise BadRequestError("factors are above 0, and momentum from 0 to below 1")
    changes = []
    if batch != 1:
        if optimizer in _ADAPTIVE:
            why = "Adam's kind divides by the noise: the rate goes with the square root of the batch"
            changes.append(CoChange("learning rate", math.sqrt(batch), why))
        else:
            why = "linear scaling (Goyal 2017): a batch k times as large takes one step for k"
            changes.append(CoChange("learning rate", batch, f"{why}; far beyond 8k examples it breaks down"))
        changes.append(CoChange("steps", 1 / batch, "for as many examples"))
        if batch > 1:
            changes.append(
                CoChange(
                    "warmup, as a share of the run", max(1.0, math.log2(batch)), "a higher peak wants a longer one"
                )
            )
    if momentum is not None and momentum[0] != momentum[1]:
        if optimizer in ("momentum", "nag", "sgd"):
            factor = (1 - momentum[1]) / (1 - momentum[0])
            changes.append(CoChange("learning rate", factor, "velocity adds up to 1 / (1 - momentum) gradients"))
        else:
            changes.append(
                CoChange("learning rate", 1.0, "its first moment is an average: the step does not grow with it")
            )
    total = rate * math.prod(change.factor for change in changes if change.what == "learning rate")
    if total != 1 and decay_mode == "decoupled":
        changes.append(
            CoChange("weight decay", 1 / total, "each step shrinks weights by rate * decay: this keeps the product")
        )
    return changes
