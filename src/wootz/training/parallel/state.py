"""Model and optimiser as PyTorch's distributed checkpoints keep them: saved by any number of ranks, read by any other.

Every rank writes its own shards, and what was cut for one layout is put together from pieces for another, because
parameters have the same names under all of them (`taken_apart`). One process without a mesh takes part too, once its
model is taken apart.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from wootz.models.decoder import Decoder
from wootz.training.parallel.taken_apart import put_together, take_apart

_BY_NAME = StateDictOptions(flatten_optimizer_state_dict=True)
"""Optimiser state under parameters' names and not their numbers, which differ from stage to stage."""


def sharded_state(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """This rank's part of everything, for ``torch.distributed.checkpoint``."""
    state: dict[str, Any] = {"model": _held(get_model_state_dict(model))}
    if optimizer is not None:
        state["optimizer"] = get_optimizer_state_dict(model, optimizer, options=_BY_NAME)
    return state


def save_sharded(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Called on every rank at once."""
    state_dict_saver.save(sharded_state(model, optimizer), checkpoint_id=folder, no_dist=not dist.is_initialized())


def load_sharded(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Called on every rank at once; each reads what it holds, whoever wrote it."""
    state = sharded_state(model, optimizer)
    state_dict_loader.load(state, checkpoint_id=folder, no_dist=not dist.is_initialized())
    set_model_state_dict(model, state["model"], options=StateDictOptions(strict=False))
    if optimizer is not None:
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_BY_NAME)


def load_whole(folder: Path, model: Decoder) -> Decoder:
    """The weights of such a checkpoint in one process's model, as it is served and saved. No other rank is asked."""
    take_apart(model)
    state = {"model": _held(get_model_state_dict(model))}
    with warnings.catch_warnings(action="ignore"):  # that one process is alone is as it should be
        state_dict_loader.load(state, checkpoint_id=folder, no_dist=True)
    set_model_state_dict(model, state["model"])
    put_together(model)
    model.tie_weights()
    return model


def _held(state: dict[str, Any]) -> dict[str, Any]:
    """Without the empty embedding of a pipeline's later stages."""
    return {name: tensor for name, tensor in state.items() if tensor.numel()}
