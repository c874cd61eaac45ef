"""`GradualUnfreezing`: of a model that goes on with other text, the top learns first, and lower layers join it one
after another (ULMFiT, arXiv 1801.06146): while the top is far off, its gradients would tear at what the bottom knows.
Layers that have not joined are not moved, need no gradients and no state, and what lies below the lowest that has
joined is not even run backward. Layer-wise rates (``layer_decay``, from the same paper) go with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from wootz.core.errors import ConfigError
from wootz.training.trainer import Callback, Trainer


class GradualUnfreezing(Callback):
    """Group n, counted from the top, is trained from ``steps[n]`` on. What is trained follows from the step alone, so
    there is nothing to remember. ``model`` is a `Decoder`, or names its parts alike."""

    def __init__(self, model: nn.Module, steps: Sequence[int]) -> None:
        self.steps = tuple(steps)
        self.groups = groups_from_the_top(model, len(steps))

    def before_step(self, trainer: Trainer) -> None:
        for group, first in zip(self.groups, self.steps, strict=True):
            for parameter in group.values():
                parameter.requires_grad_(trainer.step >= first)
        if trainer.step in self.steps:
            trained = sum(parameter.numel() for parameter in trainer.parameters if parameter.requires_grad)
            whole = sum(parameter.numel() for parameter in trainer.parameters)
            trainer.report(f"step {trainer.step}: {trained / whole:.0%} of all weights are trained from here on")


def groups_from_the_top(model: nn.Module, num_groups: int) -> list[dict[str, nn.Parameter]]:
    """Parameters by name. Last norm and head go with the last layer; the embedding lies below the first, and so does a
    head that is tied to it. Raises `ConfigError` for more groups than layers and an embedding."""
    levels: dict[int, dict[str, nn.Parameter]] = {}
    num_layers = len(list(model.get_submodule("layers").children()))
    for name, parameter in model.named_parameters():
        part, _, rest = name.partition(".")
        level = -1 if part.startswith("embedding") else num_layers - 1
        if part == "layers":
            level = int(rest.partition(".")[0])
        levels.setdefault(level, {})[name] = parameter
    from_the_top = sorted(levels, reverse=True)
    if not 1 <= num_groups <= len(from_the_top):
        raise ConfigError(f"{len(from_the_top)} layers and embeddings do not make {num_groups} groups to unfreeze")
    shares = np.array_split(from_the_top, num_groups)
    return [{name: p for level in share for name, p in levels[int(level)].items()} for share in shares]
