"""Where a model's weights are: on the device, in host memory, or in the file they came from. For sleeping and waking.

The levels are vLLM's. Level 1 keeps the weights in host memory (on a CPU they are there already); level 2 frees them,
and they are read from the model's file again, or are given by whoever has newer ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from wootz.core import UnavailableError, UnsupportedError
from wootz.engine.runner import Model
from wootz.models import Decoder
from wootz.models.replacing import let_go, replace_weights


class Weights:
    """``reload`` reads the model from its file; None if it did not come from one."""

    def __init__(self, model: Model, reload: Callable[[], Model] | None) -> None:
        self.model, self.reload, self.device = model, reload, model.device

    def let_go(self, level: int) -> None:
        """Free the device's memory."""
        module = cast(nn.Module, self.model)
        if level == 2:
            let_go(module)
        elif self.device.type != "cpu":
            module.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def take_back(self) -> Model:
        """The model with its weights on the device; another object if it had to be read again."""
        if self.model.device.type == "meta":
            if self.reload is None:
                raise UnavailableError("the weights were let go, and came from no file", hint="give new ones")
            self.model = self.reload()
        elif self.model.device != self.device:
            cast(nn.Module, self.model).to(self.device)
        return self.model

    def replace(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """New ones in place; on the device afterwards. Raises as `replace_weights` does."""
        if not isinstance(self.model, Decoder):
            raise UnsupportedError("this kind of model's weights cannot be replaced")
        if self.model.device.type != "meta":
            self.take_back()
        replace_weights(self.model, weights, self.device)
