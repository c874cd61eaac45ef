"""New weights for a model that is in use, in place: what a trainer hands to the engine that samples for it.

    replace_weights(model, trained.named_tensors())       # names as in a checkpoint (Hugging Face layout)

Nothing is allocated but a packed weight's plain form, one model in all at most. `let_go` is the first half alone:
the weights are gone, their shapes are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from wootz.core.errors import BadRequestError
from wootz.models.decoder import Decoder
from wootz.models.linear import Embedding, Linear, prepare_for_inference
from wootz.models.loading import ignored_names, open_checkpoint
from wootz.models.names import checkpoint_views


@torch.no_grad()
def replace_weights(model: Decoder, weights: Iterable[tuple[str, Tensor]], device: torch.device) -> None:
    """Copy each tensor over the one of its name; those that are not named stay, unless they were `let_go`.

    Raises `BadRequestError` for a name or shape that the model does not have, and for one that is missing. The tensors
    before it are replaced by then: hand over a whole set before the model is used again.
    """
    was_let_go = model.device.type == "meta"
    try:
        for module in model.modules():
            if isinstance(module, Linear | Embedding):
                module.unpack()
        if was_let_go:
            _each(model, lambda tensor: torch.empty_like(tensor, device=device))
        model.tie_weights()
        views = checkpoint_views(model)
        missing, is_ignored = set(views), ignored_names(model)
        for name, tensor in weights:
            if name not in views:
                if is_ignored(name):
                    continue
                raise BadRequestError(f'the model has no tensor "{name}"', param=name)
            if tensor.shape != views[name].shape:
                raise BadRequestError(
                    f'tensor "{name}" has shape {tuple(tensor.shape)}, but the model\'s has {tuple(views[name].shape)}',
                    param=name,
                )
            views[name].copy_(tensor)
            missing.discard(name)
        if was_let_go and missing:
            raise BadRequestError(f'{len(missing)} tensors are missing, such as "{min(missing)}"', param=min(missing))
    finally:
        prepare_for_inference(model)


def let_go(model: nn.Module) -> None:
    """Free all weights; what is left on the meta device knows their names, shapes and dtype."""
    for module in model.modules():
        if isinstance(module, Linear | Embedding):
            module.discard()
    _each(model, lambda tensor: tensor.to("meta"))


def _each(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Put another tensor in place of everything that a checkpoint would hold; what is computed once stays."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(make(parameter.detach()), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                setattr(module, name, make(buffer))


def read_weights(path: Path | str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, by name. Raises `ModelFileError`."""
    checkpoint = open_checkpoint(Path(path))
    return ((name, checkpoint.tensor(name)) for name in checkpoint.names)
