"""A rank's share of a checkpoint, and of the file no byte more.

How a parameter is cut is known in our terms, how a checkpoint keeps it in the family's (`wootz.models.names`): rows of
several tensors, transposed, a tensor per expert. The two meet without a rule for each pair of them: the family's view
is taken of *coordinates* instead of weights. Where the view of the coordinates along the cut shows those that are
kept, there lies what is to be read.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from wootz.core.errors import ConfigError
from wootz.models.decoder import Decoder
from wootz.models.loading import Checkpoint, check_names, check_shape, open_checkpoint
from wootz.models.names import checkpoint_pieces
from wootz.models.parallel.cut import Cut, Place, cut


def load_shard(path: Path | str, place: Place, *, dtype: torch.dtype, device: torch.device) -> Decoder:
    """What ``place`` holds of the model in a folder or ``.gguf`` file; to be `connect`-ed before it is run.

    Raises as `wootz.models.load` does, and `ConfigError` for a model that does not divide like that.
    """
    path = Path(path)
    checkpoint = open_checkpoint(path)
    whole, model, cuts = _divide(path, checkpoint, place)
    wanted = checkpoint_pieces(whole)
    check_names(path, whole, [name for views in wanted.values() for name in views], checkpoint.names)
    model.to(dtype).to_empty(device=device)
    if place.stage == 0:
        model.tie_weights()
    coordinates = checkpoint_pieces(whole, {name: _coordinates(whole, name, cut) for name, cut in cuts.items()})
    for ours, views in checkpoint_pieces(model).items():
        parts = _parts(coordinates[ours], cuts[ours]) if ours in cuts else dict.fromkeys(wanted[ours])
        for (name, part), view in zip(parts.items(), views.values(), strict=True):
            if view.numel():
                check_shape(path, name, checkpoint.shape(name), tuple(wanted[ours][name].shape))
                view.copy_(checkpoint.tensor(name) if part is None else checkpoint.part(name, part))
    return model.eval()


def check_divides(path: Path | str, place: Place) -> None:
    """Raise what `load_shard` would raise of a model that does not divide; reads the config only."""
    _divide(Path(path), open_checkpoint(Path(path)), place)


def _divide(path: Path, checkpoint: Checkpoint, place: Place) -> tuple[Decoder, Decoder, dict[str, Cut]]:
    """The whole model and its part, without weights, and how one comes from the other."""
    with torch.device("meta"):
        whole, model = checkpoint.config.build(), checkpoint.config.build()
    if not isinstance(whole, Decoder) or not isinstance(model, Decoder):
        raise ConfigError(f'{path}: "{checkpoint.config.family}" is no decoder, and only those are divided')
    try:
        return whole, model, cut(model, place)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _coordinates(whole: Decoder, name: str, cut: Cut) -> Tensor:
    """In the parameter's shape, each place's coordinate along the cut. Takes the memory of one line."""
    shape = whole.get_parameter(name).shape
    line = torch.arange(shape[cut.dim], dtype=torch.int32)
    return line.view([-1 if dim == cut.dim else 1 for dim in range(len(shape))]).expand(shape)


def _parts(views: dict[str, Tensor], cut: Cut) -> dict[str, Cut | None]:
    """What is to be read of which of a parameter's tensors in the checkpoint, by the coordinates that each of them
    shows. None is all of it; one of which nothing is kept is left out."""
    parts: dict[str, Cut | None] = {}
    for name, view in views.items():
        lines = [view[(0,) * dim + (slice(None),) + (0,) * (view.ndim - dim - 1)] for dim in range(view.ndim)]
        dim = next((dim for dim, line in enumerate(lines) if line[0] != line[-1]), None)
        if dim is not None:
            parts[name] = Cut(dim, tuple(_runs(lines[dim], cut)))
        elif _runs(lines[0][:1], cut):
            parts[name] = None
    return parts


def _runs(line: Tensor, cut: Cut) -> list[tuple[int, int]]:
    """Where along a line of coordinates those of the cut lie, run by run."""
    is_kept = torch.zeros(len(line) + 2, dtype=torch.int8)
    for start, end in cut.ranges:
        is_kept[1:-1] |= ((line >= start) & (line < end)).to(torch.int8)
    edges = is_kept.diff().nonzero().flatten().tolist()
    return list(pairwise(edges))[::2]
