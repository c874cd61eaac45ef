"""Activation checkpointing: a layer's inner results are forgotten and computed again for the backward pass.

A third more arithmetic for memory that grows with the square root of the depth's cost (arXiv 1604.06174). The second
computation must be the first one over again, dropout included, or gradients are of another function; `check_recompute`
shows it for a model and a batch, bit by bit.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wootz.core.errors import ConfigError
from wootz.data.batch import Batch
from wootz.training.random_state import random_state, set_random_state
from wootz.training.trainer import Objective


def recompute_layers(model: Any) -> None:
    """From now on every layer of ``model`` is recomputed. Weights keep their names."""
    for layer in model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=True)


def check_recompute(model: nn.Module, batch: Batch, objective: Objective) -> None:
    """Gradients with recomputation against gradients without. Raises `ConfigError`, naming the first weight whose
    gradient is not bit for bit the same: its layer does not compute twice what it computed once."""
    layers: Any = model.get_submodule("layers")
    state = random_state()
    wrapped = [layer.forward for layer in layers]
    recomputed = _gradients(model, batch, objective)
    set_random_state(state)
    for layer in layers:
        (layer.forward,) = layer.forward.args  # what `checkpoint` is asked to call: compiled layers stay so
    plain = _gradients(model, batch, objective)
    for layer, forward in zip(layers, wrapped, strict=True):
        layer.forward = forward
    set_random_state(state)
    for name, gradient in plain.items():
        if not torch.equal(gradient, recomputed[name]):
            raise ConfigError(f"recomputing gives {name} another gradient", hint="set pretrain.recompute = false")


def _gradients(model: nn.Module, batch: Batch, objective: Objective) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    objective(model, batch).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients
