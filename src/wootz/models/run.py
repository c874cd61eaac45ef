"""`Run`: one forward pass, as all layers of a model see it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wootz.models.context import CacheSpec, Context, PackedContext

if TYPE_CHECKING:
    from wootz.models.positions.rotary import Rotary, RotaryConfig, Rotation


@dataclass
class Run:
    """Where each token of the flat run stands, and what it may look at. Made anew for each pass."""

    positions_T: Tensor
    context: Context
    shared: dict[str, Tensor] = field(default_factory=dict)
    """What one layer leaves for later ones: the embeddings, say, or the first layer's values."""
    _rotations: dict[tuple[RotaryConfig, torch.dtype], Rotation] = field(default_factory=dict)

    def rotation(self, rotary: Rotary, dtype: torch.dtype) -> Rotation:
        """The angles of this pass, made once for all layers that turn alike."""
        key = rotary.config, dtype
        if key not in self._rotations:
            lengths = self.context.lengths if isinstance(self.context, PackedContext) else ()
            self._rotations[key] = rotary(self.positions_T, dtype, lengths)
        return self._rotations[key]


class Remembering(nn.Module):
    """A layer that keeps something per sequence: it says what, and the model it is in says in which slot."""

    slot: int = -1
    cache_spec: CacheSpec


def assign_slots(model: nn.Module) -> list[CacheSpec]:
    """Number the model's remembering layers in order; returns what each keeps."""
    layers = [module for module in model.modules() if isinstance(module, Remembering)]
    for slot, layer in enumerate(layers):
        layer.slot = slot
    return [layer.cache_spec for layer in layers]


def move_slots(modules: Iterable[nn.Module], first: int) -> None:
    """Number a model's remembering layers from ``first`` on: another model's come before them in the same cache."""
    for slot, layer in enumerate(module for module in modules if isinstance(module, Remembering)):
        layer.slot = first + slot
