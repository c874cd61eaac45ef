"""`Recurrent`: what layers have in common that fold the past into a state of fixed size."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from wootz.models.context import Advance, RecurrentState
from wootz.models.run import Remembering, Run


class Recurrent(Remembering):
    """A layer says what it keeps per sequence, as shapes, and how tokens change that, as ``advance``. The context has
    the state of every sequence, and calls it: with one token, or with many."""

    advance: ClassVar[Advance]

    def __init__(self, *shapes: tuple[int, ...], initial: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.cache_spec = self.state_spec = RecurrentState(shapes, initial)

    def recur(self, run: Run, *inputs_T: Tensor) -> Tensor:
        return run.context.recur(self.slot, self.state_spec, self.advance, *inputs_T)
