"""What flows into each projection of a layer, on a few texts: all that the methods want to know of the data.

A model is walked through layer by layer (`Walk`): the texts' hidden states wait before a layer, are sent through it
once to see what its projections get, and once more when the layer has been quantised. So every layer is prepared for
what the quantised layers before it hand over, and only one layer's statistics are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wootz.models.blocks.experts import GroupedLinear
from wootz.models.context import PackedContext
from wootz.models.decoder import Decoder, Layer
from wootz.models.linear import Linear
from wootz.models.run import Run

MOST_ROWS = 512
"""Inputs of a projection that are kept as they are, to measure errors on."""

_TOKENS_AT_ONCE = 2048

Projection = Linear | GroupedLinear
Key = tuple[Projection, int]
"""A projection, and which of its experts (0 for a `Linear`)."""


class Inputs:
    """Statistics of the inputs of one projection, ``(N, I)`` in all."""

    def __init__(self, columns: int, *, hessian: bool) -> None:
        self.count = 0
        self.max_abs_I = torch.zeros(columns)
        self._sum_abs_I = torch.zeros(columns)
        self._squares_II = torch.zeros(columns, columns) if hessian else None
        self._rows: list[Tensor] = []

    def add(self, x_NI: Tensor, share: float = 1.0) -> None:
        """``share`` of the rows that are kept at most come from here."""
        if len(x_NI) == 0:
            return
        x_NI = x_NI.detach().float()
        self.count += len(x_NI)
        self.max_abs_I = torch.maximum(self.max_abs_I, x_NI.abs().amax(0))
        self._sum_abs_I += x_NI.abs().sum(0)
        if self._squares_II is not None:
            self._squares_II.addmm_(x_NI.T, x_NI)
        most = max(1, int(MOST_ROWS * share))
        self._rows.append(x_NI[:: -(-len(x_NI) // most)].clone())

    @property
    def mean_abs_I(self) -> Tensor:
        return self._sum_abs_I / max(self.count, 1)

    @property
    def hessian_II(self) -> Tensor:
        """`input_hessian` of all of them."""
        if self._squares_II is None:
            raise ValueError("no squares were counted")
        return 2 * self._squares_II / max(self.count, 1)

    @property
    def rows_NI(self) -> Tensor:
        """Some of them."""
        return torch.cat(self._rows) if self._rows else torch.zeros(0, len(self.max_abs_I))

    def divide(self, scale_I: Tensor) -> None:
        """As if the operation before had been divided by ``scale``."""
        self.max_abs_I = self.max_abs_I / scale_I
        self._sum_abs_I = self._sum_abs_I / scale_I
        self._rows = [row / scale_I for row in self._rows]
        if self._squares_II is not None:
            self._squares_II = self._squares_II / torch.outer(scale_I, scale_I)


class Walk:
    """Texts on their way through a model. All of one length, so that many go side by side."""

    @torch.inference_mode()
    def __init__(self, model: Decoder, documents: Sequence[Sequence[int]]) -> None:
        self.num_tokens = sum(map(len, documents))
        self._states: list[tuple[Tensor, Run]] = []
        at_once = max(1, _TOKENS_AT_ONCE // max(1, len(documents[0]) if documents else 1))
        for start in range(0, len(documents), at_once):
            some = documents[start : start + at_once]
            token_ids_T = torch.tensor([token for document in some for token in document])
            positions_T = torch.cat([torch.arange(len(document)) for document in some])
            self._states.append(model.start(token_ids_T, positions_T, PackedContext([*map(len, some)])))

    @torch.inference_mode()
    def watch(self, layer: Layer, keys: Sequence[Key], *, hessian: bool) -> dict[Key, Inputs]:
        """What the layer's projections get. The texts stay where they are."""
        seen = {key: Inputs(key[0].weight.shape[-1], hessian=hessian) for key in keys}
        with _watched(seen, 1 / max(1, len(self._states))):
            for x_TD, run in self._states:
                layer(x_TD, run)
        return seen

    @torch.inference_mode()
    def advance(self, layer: Layer) -> None:
        """Send the texts through the layer."""
        self._states = [(layer(x_TD, run), run) for x_TD, run in self._states]


@contextmanager
def _watched(seen: Mapping[Key, Inputs], share: float) -> Iterator[None]:
    def watch(module: Projection) -> Callable[..., None]:
        def see(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if isinstance(module, Linear):
                seen[module, 0].add(arguments[0].flatten(0, -2), share)
                return
            x_ND, counts = arguments
            for expert, rows in enumerate(x_ND.split([*counts])):
                if (module, expert) in seen:
                    seen[module, expert].add(rows, share)

        return see

    hooks = [module.register_forward_pre_hook(watch(module)) for module in {module for module, _ in seen}]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
