"""`StragglerGuard`: one slow rank makes all wait, so after a warm-up each rank's own speed is compared.

What is timed is a product of matrices on each rank by itself: a step's time is alike on all ranks, since they wait for
each other. A rank more than `SPREAD` slower than the median is named, with what to do.
"""

from __future__ import annotations

from statistics import median

import torch
import torch.distributed as dist

from wootz.training.estimate import matmul_rate
from wootz.training.trainer import Callback, Step, Trainer, rank, world_size


class StragglerGuard(Callback):
    SPREAD = 0.03

    def __init__(self, at_step: int = 20) -> None:
        self.at_step = at_step

    def after_step(self, trainer: Trainer, step: Step) -> None:
        if world_size() == 1 or step.number != self.at_step:
            return
        rates = torch.zeros(world_size(), dtype=torch.float64, device=trainer.device)
        rates[rank()] = matmul_rate()
        dist.all_reduce(rates)
        if (advice := advice_on(rates.tolist(), self.SPREAD)) and rank() == 0:
            trainer.report(advice)


def advice_on(rates: list[float], spread: float) -> str | None:
    """One line on ranks that compute slower than the median by more than ``spread``; None if none does."""
    usual = median(rates)
    slow = {number: 1 - rate / usual for number, rate in enumerate(rates) if rate < usual * (1 - spread)}
    if not slow:
        return None
    names = ", ".join(f"rank {number} by {share:.0%}" for number, share in slow.items())
    lost = max(slow.values())
    return (
        f"slower than the others: {names}; everyone waits, so up to {lost:.0%} of all machines is lost. Look for heat and "
        "other work there; put such machines together in one pipeline stage, or leave them out"
    )
