"""The learning-rate range test: raise the rate a little with every batch until the loss blows up, and see where.

Smith's test (arXiv 1506.01186) as a tool one can rely on: the loss is smoothed and freed of the smoothing's bias, a
loss that is no number ends the test in place of the run, batches that run out begin again, and model, optimiser, random
numbers and the batches' place are put back as they were, bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wootz.core.errors import ConfigError
from wootz.core.progress import SILENT, Progress
from wootz.training.optimizers import set_rate

SAFE = (0.3, 1.0)
"""Of the edge: where to look for the peak."""

NEAR = 0.1
"""Of the whole descent."""


@dataclass(frozen=True)
class RangeTest:
    rates: list[float]
    losses: list[float]
    """As measured; the last may be infinite."""
    smoothed: list[float]
    starts_learning: float | None
    """The first rate at which a tenth of the whole descent is behind; below it lies the plateau."""
    steepest: float | None
    """Where the loss fell fastest per decade of rate."""
    edge: float | None
    """The last rate at which the loss was still near its lowest (`NEAR`): beyond, it leaves for good."""
    blown_up: bool
    """False: the test ended at its highest rate, so the edge may lie beyond."""

    @property
    def suggested(self) -> tuple[float, float] | None:
        return None if self.edge is None else (SAFE[0] * self.edge, SAFE[1] * self.edge)


def range_test(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Any, Any], Tensor],
    batches: Iterable[Any],
    *,
    lowest: float = 1e-7,
    highest: float = 10.0,
    steps: int = 200,
    smoothing: float = 0.9,
    blow_up: float = 4.0,
    max_grad_norm: float | None = None,
    progress: Progress = SILENT,
) -> RangeTest:
    """``loss_of(model, batch)`` at rates from ``lowest`` to ``highest``, each the same factor above the one before.
    Ends early where the smoothed loss is above ``blow_up`` times the lowest it has been."""
    if not 0 < lowest < highest or steps < 2:
        raise ConfigError(f"no range to test: {steps} steps from {lowest} to {highest}")
    rates, losses, smoothed = [], [], []
    average, best = 0.0, math.inf
    with restored(model, optimizer, batches):
        model.train()
        source = _for_ever(batches)
        for step in range(steps):
            rate = lowest * (highest / lowest) ** (step / (steps - 1))
            set_rate(optimizer, rate)
            loss = loss_of(model, next(source))
            value = loss.item() if torch.isfinite(loss) else math.inf
            rates.append(rate)
            losses.append(value)
            average = smoothing * average + (1 - smoothing) * value
            smoothed.append(average / (1 - smoothing ** (step + 1)))
            best = min(best, smoothed[-1])
            progress.advance()
            if not math.isfinite(smoothed[-1]) or (step > 5 and smoothed[-1] > blow_up * best):
                break
            optimizer.zero_grad()
            loss.backward()
            if max_grad_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            optimizer.step()
    return _read(rates, losses, smoothed, ended_early=len(rates) < steps)


def _read(rates: list[float], losses: list[float], smoothed: list[float], *, ended_early: bool) -> RangeTest:
    finite = [value for value in smoothed if math.isfinite(value)]
    if not finite or min(finite) >= finite[0]:
        return RangeTest(rates, losses, smoothed, None, None, None, ended_early)
    lowest = min(range(len(finite)), key=finite.__getitem__)
    drop = finite[0] - finite[lowest]
    starts = next(index for index in range(lowest + 1) if finite[index] <= finite[0] - 0.1 * drop)
    slopes = [finite[index - 1] - finite[index] for index in range(1, lowest + 1)]
    steepest = 1 + max(range(len(slopes)), key=slopes.__getitem__)
    near = finite[lowest] + NEAR * drop
    edge = max((index for index, value in enumerate(losses) if value <= near), default=lowest)
    return RangeTest(rates, losses, smoothed, rates[starts], rates[steepest], rates[edge], ended_early)


@contextmanager
def restored(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Any = None) -> Iterator[None]:
    """While the block runs, anything may happen to the model, the optimiser, random numbers and (where they can say
    where they stand) the batches; afterwards all are as they were."""
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    training = {part: part.training for part in model.modules()}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    random, stateful = torch.get_rng_state(), hasattr(batches, "load_state_dict")
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    place = copy.deepcopy(batches.state_dict()) if stateful else None
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        model.load_state_dict(weights)
        optimizer.state.clear()
        optimizer.load_state_dict(state)
        for part, was_training in training.items():
            part.training = was_training
        for parameter, gradient in gradients:
            parameter.grad = gradient
        torch.set_rng_state(random)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
        if stateful:
            batches.load_state_dict(place)


def _for_ever(batches: Iterable[Any]) -> Iterator[Any]:
    if not hasattr(batches, "__iter__"):  # `Batches` are endless and know only `next`
        while True:
            yield next(batches)  # type: ignore[call-overload]
    while True:
        num_batches = 0
        for batch in batches:
            num_batches += 1
            yield batch
        if not num_batches:
            raise ConfigError("the range test ran out of batches: there are none, or they can be read only once")
