"""`FiniteGuard`: a loss or gradient that is not a number never reaches the weights, and is traced to where it began.

After the gradients are averaged every rank has it, so all compute the step's batches once more, now looking at what
each module gives, and tell each other the first that was not finite, and which of its weights. (In a step without
fault nothing is looked at but the loss and the norm, which are there anyway.) One such step is skipped; `MOST_IN_A_ROW`
of them end the run, since skipping does not help against what stays.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wootz.training.trainer import Callback, Step, Trainer, world_size


class FiniteGuard(Callback):
    MOST_IN_A_ROW = 10

    def __init__(self) -> None:
        self.in_a_row = 0

    def before_update(self, trainer: Trainer, step: Step) -> str | None:
        if math.isfinite(step.loss) and math.isfinite(step.grad_norm):
            self.in_a_row = 0
            return None
        found = _exchanged(_cause(trainer))
        guilty = [f"rank {number}: {cause}" for number, cause in enumerate(found) if cause]
        reason = "; ".join(guilty) or "it did not come again when the step was computed once more"
        self.in_a_row += 1
        if self.in_a_row > self.MOST_IN_A_ROW:
            raise FloatingPointError(f"step {step.number}: not a number {self.in_a_row} steps in a row; {reason}")
        return f"not a number; {reason}"

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.in_a_row = state.get("in_a_row", 0)


def _cause(trainer: Trainer) -> str | None:
    """Where it begins in this rank's own computation."""
    first: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not first and isinstance(output, Tensor) and not _finite(output):
                first.append(name)

        return hook

    inner = [(name, module) for name, module in trainer.model.named_modules() if name]
    hooks = [module.register_forward_hook(look(name)) for name, module in inner]
    with torch.no_grad(), trainer.precision():
        losses = [trainer.objective(trainer.model, batch).item() for batch in trainer.micro_batches]
    for hook in hooks:
        hook.remove()
    if first:
        weights = trainer.model.get_submodule(first[0]).named_parameters()
        bad = next((name for name, weight in weights if not _finite(weight)), None)
        return f"first in the output of {first[0]}" + (f", whose {bad} holds one" if bad else "")
    if not all(map(math.isfinite, losses)):
        return "in the loss"
    gradients = [(name, p.grad) for name, p in trainer.model.named_parameters() if p.grad is not None]
    bad = next((name for name, gradient in gradients if not _finite(gradient)), None)
    return f"in the gradient of {bad}" if bad and world_size() == 1 else None


def _finite(tensor: Tensor) -> bool:
    local = getattr(tensor, "to_local", lambda: tensor)()
    return bool(torch.isfinite(local).all())


def _exchanged(cause: str | None) -> list[str | None]:
    if world_size() == 1:
        return [cause]
    causes: list[str | None] = [None] * world_size()
    dist.all_gather_object(causes, cause)
    return causes
