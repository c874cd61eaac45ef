"""`Trainer`: a model, what it should do (objective), how it moves (optimiser, schedule), what it reads (batches), and
those who look on (callbacks). One step after another until all are made:

    read micro-batches → loss → gradients → clip → may we? → update → tell

It knows nothing of meshes: a model that was parallelised from outside (`wootz.training.parallel`) gives gradients that
are already averaged over ranks, and the rest is the same. All that a step depends on is in `state_dict`, so a run that
is taken up from a checkpoint makes the very updates that it would have made (`wootz.training.checkpoints`).

What else a run wants to see or prevent is a `Callback`: checkpoints, evaluation, samples, and every guard of
`wootz.training.guards`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from wootz.data.batch import IGNORED, Batch, Batches
from wootz.training.cross_entropy import sliced_language_loss
from wootz.training.loss_scale import LossScale
from wootz.training.random_state import random_state, set_random_state

Objective = Callable[[Any, Batch], Tensor]
"""``objective(model, batch)``: mean nats over the labels that are asked."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    steps: int
    accumulate: int = 1
    """Micro-batches whose gradients are summed to one update: equal to one batch of all their rows."""
    max_grad_norm: float = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 compute products in it, and keep weights, gradients, sums and the optimiser in float32. In fp16 the
    loss is scaled (`LossScale`)."""


@dataclass
class Step:
    """What one step saw and did. Figures are of all ranks together."""

    number: int
    loss: float
    """Nats per asked label."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    num_tokens: int
    seconds: float
    skipped: str | None = None
    """Why the update was not made, if it was not."""


class Callback:
    """Looks on, and may say no. Every method does nothing unless it is overridden."""

    def on_start(self, trainer: Trainer) -> None: ...

    def before_step(self, trainer: Trainer) -> None: ...

    def before_update(self, trainer: Trainer, step: Step) -> str | None:
        """The reason why this update is not to be made. Gradients are there, and clipped. Asked on every rank, and to
        be answered alike on all: from ``step``, or from what was exchanged."""

    def after_step(self, trainer: Trainer, step: Step) -> None: ...

    def on_end(self, trainer: Trainer) -> None:
        """Also called when a run is stopped by an error."""

    def state_dict(self) -> dict[str, Any]:
        """What it must remember to go on as if never stopped, in JSON's types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class AfterStep(Callback):
    """Calls ``then`` with the step's number once its update is made."""

    def __init__(self, then: Callable[[int], None]) -> None:
        self.then = then

    def after_step(self, trainer: Trainer, step: Step) -> None:
        self.then(step.number)


class Trainer:
    """``schedule(step)`` is the share of the optimiser's own learning rate that holds in that step."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        batches: Batches,
        config: TrainerConfig,
        *,
        objective: Objective = sliced_language_loss,
        callbacks: Sequence[Callback] = (),
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.model, self.optimizer, self.schedule, self.batches = model, optimizer, schedule, batches
        self.config, self.objective, self.callbacks = config, objective, callbacks
        self.report = report
        """Where one line goes about something that a person should know."""
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.device = self.parameters[0].device
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.rate_factor = 1.0
        """Lowered for good when a run had to be taken back (`wootz.training.guards.spike`)."""
        self.loss_scale = LossScale(dynamic=config.precision == "fp16")
        self.micro_batches: list[Batch] = []
        """Of this rank, of the step that is being made."""
        self.step = 0
        """Steps made, and so the number of the next."""

    def run(self) -> None:
        self.model.train()
        try:
            self._tell("on_start")
            while self.step < self.config.steps:
                self._tell("before_step")
                step = self.make_step()
                self._tell("after_step", step)
        finally:
            self._tell("on_end")
        self.model.eval()

    def make_step(self) -> Step:
        started = perf_counter()
        self.micro_batches = [next(self.batches).to(self.device) for _ in range(self.config.accumulate)]
        rate = self._set_learning_rate()
        loss, num_tokens = self._backward(self.micro_batches)
        self.loss_scale.unscale(self.parameters)
        step = Step(self.step, loss, self._clip(), rate, num_tokens, 0.0)
        step.skipped = self.loss_scale.overflow(step.loss, step.grad_norm) or self._objection(step)
        if step.skipped is None:
            if not math.isfinite(step.loss + step.grad_norm):
                raise FloatingPointError(f"the loss is {loss} at step {self.step}; try a smaller learning rate")
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        step.seconds = perf_counter() - started
        return step

    def _objection(self, step: Step) -> str | None:
        reasons = [callback.before_update(self, step) for callback in self.callbacks]
        return next((reason for reason in reasons if reason), None)

    def _backward(self, micro_batches: list[Batch]) -> tuple[float, int]:
        """Gradients of the mean over all asked labels of all micro-batches of all ranks, scaled; returns the mean, and
        how many tokens were read. Ranks' gradients are averaged when they are reduced, hence the factor of the world's
        size."""
        asked = [int((batch.labels_BT != IGNORED).sum()) for batch in micro_batches]
        read = sum(batch.tokens_BT.numel() for batch in micro_batches)
        num_asked, num_read = (int(total) for total in self.sum_over_ranks(sum(asked), read))
        total = 0.0
        for batch, count in zip(micro_batches, asked, strict=True):
            with self.precision():
                loss = self.objective(self.model, batch)
            (loss * (count * world_size() / num_asked * self.loss_scale.value)).backward()
            total += loss.item() * count / num_asked
        return self.sum_over_ranks(total)[0], num_read

    def _clip(self) -> float:
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        return getattr(norm, "full_tensor", lambda: norm)().item()  # sharded gradients have a sharded norm

    def _set_learning_rate(self) -> float:
        """Each group's own rate, by the schedule and what was lowered; returns the first group's."""
        factor = self.schedule(self.step) * self.rate_factor
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor
        return self.optimizer.param_groups[0]["lr"]

    @property
    def peers(self) -> Sequence[int]:
        """Ranks that compute with the same weights as this one, itself among them."""
        return range(world_size())

    def precision(self) -> torch.autocast:
        dtype = torch.float16 if self.config.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.config.precision != "fp32")

    def sum_over_ranks(self, *figures: float) -> list[float]:
        if world_size() == 1:
            return list(figures)
        sums = torch.tensor(figures, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def state_dict(self) -> dict[str, Any]:
        """All but weights and the optimiser's tensors, of this rank, in JSON's types."""
        return {
            "step": self.step,
            "rate_factor": self.rate_factor,
            "loss_scale": self.loss_scale.state_dict(),
            "batches": self.batches.state_dict(),
            "random": random_state(),
            "callbacks": {type(callback).__name__: callback.state_dict() for callback in self.callbacks},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.rate_factor = state["step"], state["rate_factor"]
        if "loss_scale" in state:  # Checkpoints of older versions have none.
            self.loss_scale.load_state_dict(state["loss_scale"])
        self.batches.load_state_dict(state["batches"])
        set_random_state(state["random"])
        for callback in self.callbacks:
            callback.load_state_dict(state["callbacks"].get(type(callback).__name__, {}))

    def _tell(self, what: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, what)(self, *arguments)


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch], objective: Objective = sliced_language_loss) -> float:
    """Nats per asked label over all of ``batches``, of this process."""
    total, num_asked = 0.0, 0
    with evaluation(model):
        for batch in batches:
            count = int((batch.labels_BT != IGNORED).sum())
            total += objective(model, batch).item() * count
            num_asked += count
    return total / num_asked


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode in the block, and no trace of it in the training's random numbers, nor in what a rank holds of
    sharded parameters: without a backward pass those of the root would stay gathered."""
    was_training, state = model.training, random_state()
    model.eval()
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        model.train(was_training)
        set_random_state(state)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
