"""What checkpoints call our weights, in both directions, in one place.

A checkpoint in Hugging Face layout holds one tensor per projection; we keep queries, keys and values one below the
other in one `Linear`, and so gate and up. `checkpoint_views` gives the model's weights cut and named as the
checkpoint has them. They are views: copying into them loads a model, writing them to a file saves it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wootz.models.families import Names, family_of
from wootz.models.linear import Linear

if TYPE_CHECKING:
    from wootz.models.decoder import Decoder


def checkpoint_pieces(model: Decoder, instead: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
    """Of each of the model's parameters (and buffers that are kept), the views of its pieces under their checkpoint
    names, in order from the top. A tied head is not a parameter of its own. Of those named in ``instead``, the views
    are taken of the tensors given there."""
    names = family_of(model.config.family).names
    parts = {
        f"{name}.{leaf}": module.parts
        for name, module in model.named_modules()
        if isinstance(module, Linear)
        for leaf in ("weight", "bias")
    }
    pieces: dict[str, dict[str, Tensor]] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            own: Tensor = tensor.detach()
            pieces[name] = _pieces(names, name, (instead or {}).get(name, own), parts.get(name, ()))
    return pieces


def checkpoint_views(model: Decoder) -> dict[str, Tensor]:
    """The model's weights under their checkpoint names, in order."""
    return {name: view for pieces in checkpoint_pieces(model).values() for name, view in pieces.items()}


def checkpoint_rows(model: Decoder) -> dict[str, tuple[Linear, Tensor]]:
    """Of each projection in a checkpoint, by its module's name: the `Linear` that computes it here, and its rows there.

    No weight is read, so it does not matter how they are kept. Numbers of rows take the weight's place, and come out
    where its rows would, down the columns of a weight that the checkpoint keeps transposed.
    """
    names = family_of(model.config.family).names
    rows: dict[str, tuple[Linear, Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            numbers = torch.arange(module.out_features)[:, None].expand(-1, module.in_features)
            for theirs, piece in _pieces(names, f"{name}.weight", numbers, module.parts).items():
                if piece.ndim == 2 and 0 in piece.stride():
                    down = piece.stride(1) == 0
                    rows[theirs.removesuffix(".weight")] = module, piece[:, 0] if down else piece[0]
    return rows


def _pieces(names: Names, name: str, tensor: Tensor, parts: tuple[int, ...]) -> dict[str, Tensor]:
    number = re.search(r"\.(\d+)\.", name)
    layer = int(number[1]) if number else 0
    pattern = name.replace(number[0], ".{i}.", 1) if number else name
    module, _, leaf = pattern.rpartition(".")
    found = names.get(pattern)
    if callable(found):
        return found(tensor, layer)
    theirs = _tuple(found) if found else tuple(f"{their}.{leaf}" for their in _tuple(names[module]))
    views = tensor.split(parts) if len(theirs) > 1 else (tensor,)
    return {their.replace("{i}", str(layer)): view for their, view in zip(theirs, views, strict=True)}


def _tuple(names: object) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names if isinstance(names, tuple) else ()
