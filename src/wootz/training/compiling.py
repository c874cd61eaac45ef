"""`compile_layers`: each layer of a model through `torch.compile`, in training.

What is gained is what lies between products: a norm, a rotation or a gate that is read and written once instead of once
per operation. All layers are one code, so one is compiled and the others use it. Attention and the angles stay outside:
how rows are made of documents is another in every batch, and would be compiled anew for each. So does evaluation, whose
texts have all lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

from wootz.models.run import Run


def compile_layers(model: Any) -> None:
    """Compiled when they are first run. Weights keep their names. To be called before `recompute_layers`."""
    torch._dynamo.config.allow_unspec_int_on_nn_module = True  # layers differ in the number of their slot, no more
    for layer in model.layers:
        layer.forward = _compiled(layer)


def _compiled(layer: nn.Module) -> Callable[[Tensor, Run], Tensor]:
    plain = layer.forward
    compiled = torch.compile(plain)

    def forward(x_TD: Tensor, run: Run) -> Tensor:
        return compiled(x_TD, Outside(run)) if layer.training else plain(x_TD, run)

    return forward


class Outside:
    """A `Run` and its context, into which the compiler does not look."""

    def __init__(self, run: Run) -> None:
        self.run, self.positions_T, self.shared = run, run.positions_T, run.shared
        self.context = self

    @torch.compiler.disable
    def rotation(self, *how: Any) -> Any:
        return self.run.rotation(*how)

    @torch.compiler.disable
    def attend(self, *inputs: Any, **how: Any) -> Tensor:
        return self.run.context.attend(*inputs, **how)

    @torch.compiler.disable
    def attend_latent(self, *inputs: Any, **how: Any) -> Tensor:
        return self.run.context.attend_latent(*inputs, **how)

    @torch.compiler.disable
    def recur(self, *inputs: Any) -> Tensor:
        return self.run.context.recur(*inputs)

    @property
    def remembers(self) -> bool:
        return self.run.context.remembers
