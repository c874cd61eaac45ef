"""A run as numbers: operations, time, device-hours, money, and whether there is text enough.

operations = 6 N D          (arXiv 2001.08361: two per parameter and token forward, four backward)
time       = operations / (devices * peak * utilisation)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wootz.models.planning.hardware import Device

YEAR_HOURS = 8766.0
USEFUL_EPOCHS = 4.0
"""Up to here a repeated token is worth nearly a new one (arXiv 2305.16264)."""
HALF_LIFE = 15.39
"""R* of the same paper: repetitions after which what they add has fallen to 1 / e."""


@dataclass(frozen=True)
class Budget:
    parameters: float
    tokens: float
    flops: float
    devices: int
    hours: float
    dollars: float

    @property
    def days(self) -> float:
        return self.hours / 24

    @property
    def device_years(self) -> float:
        return self.devices * self.hours / YEAR_HOURS

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters


def budget(
    parameters: float,
    tokens: float,
    device: Device,
    devices: int,
    *,
    utilisation: float = 0.4,
    dollars_per_hour: float | None = None,
) -> Budget:
    """``utilisation`` is model FLOPs utilisation: of the peak, what goes into ``6 N D``. ``parameters`` are those a
    token goes through."""
    flops = 6 * parameters * tokens
    hours = flops / (devices * device.flops * utilisation) / 3600
    price = device.dollars_per_hour if dollars_per_hour is None else dollars_per_hour
    return Budget(parameters, tokens, flops, devices, hours, hours * devices * price)


def effective_tokens(unique: float, seen: float) -> float:
    """What ``seen`` tokens are worth that repeat ``unique`` ones: ``U + U R* (1 - exp(-R / R*))`` with R repetitions
    after the first (arXiv 2305.16264, equation 5). Never more than ``U (1 + R*)``."""
    if seen <= unique:
        return seen
    repetitions = seen / unique - 1
    return unique * (1 + HALF_LIFE * (1 - math.exp(-repetitions / HALF_LIFE)))


def data_warnings(tokens: float, unique: float, *, wall: float = 3e13) -> list[str]:
    """What is wrong with a run of ``tokens`` over a corpus of ``unique`` ones. ``wall`` is how much text of use there
    is at all: estimates reach from 2e11 (curated, one language) to 3e14 (everything public), so it is yours to set."""
    found = []
    epochs = tokens / unique
    if epochs > 1:
        worth = effective_tokens(unique, tokens)
        text = f"{epochs:.1f} epochs: the repeats make {tokens:.3g} tokens worth {worth:.3g} new ones"
        if epochs > USEFUL_EPOCHS:
            text += f"; beyond {USEFUL_EPOCHS:g} epochs, look for more text or a smaller run"
        found.append(text)
    if unique > wall:
        found.append(f"{unique:.3g} unique tokens are more than there are thought to be ({wall:.3g})")
    return found
