"""What the optimisers written here share: a step over parameters, and state that keeps its own precision.

State is float32 (float64 for float64 weights) whatever the weights are. In bfloat16 an average of squares stands still:
half a unit in the last place is 2^-9 of the value or more, above the 1 - beta2 = 1e-3 by which it should move.
PyTorch's `load_state_dict` would cast state to the weights' type; here it comes back as it was saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class ExactOptimizer(torch.optim.Optimizer):
    """Loads state in the types in which it was saved, so that a resumed run is the uninterrupted one, bit for bit."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        saved_ids = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(saved_ids, parameters, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][key] = value.to(parameter.device, copy=True)


class ElementwiseOptimizer(ExactOptimizer):
    """One whose step treats each parameter by itself: `update` does it, in place."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.before(group)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad.to(state_dtype(parameter)), group, self.state[parameter])
        return loss

    def before(self, group: dict[str, Any]) -> None:
        """Called once for each group in each step."""

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        raise NotImplementedError


def state_dtype(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


def zeros_for(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=state_dtype(parameter), memory_format=torch.preserve_format)


def total(value: Tensor) -> float:
    """A scalar tensor as a number, over all shards where it is one of a sharded parameter."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).item()
