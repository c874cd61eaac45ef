"""`wootz.models.attention.native_sparse` as a layer of a model, which trains and is not served.

Which blocks a token reads depends on keys of all blocks before it, so what such a layer would have to keep is more than
a `Context` can hold. It is given whole texts, and says so (`WholeText`) to an engine that asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from wootz.core.errors import UnsupportedError
from wootz.models.attention.native_sparse import NativeSparseAttention, NativeSparseConfig
from wootz.models.context import State, WholeText
from wootz.models.positions.rotary import Rotary, RotaryConfig
from wootz.models.run import Remembering, Run


@dataclass(frozen=True)
class NativeSparseMixerConfig:
    attention: NativeSparseConfig
    rotary: RotaryConfig | None = None

    def build(self, hidden_size: int) -> nn.Module:
        return NativeSparseMixer(self, hidden_size)


class NativeSparseMixer(Remembering):
    def __init__(self, config: NativeSparseMixerConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.attention = NativeSparseAttention(config.attention, hidden_size)
        self.rotary = Rotary(config.rotary) if config.rotary else None
        self.cache_spec = self.state_spec = WholeText()

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        """Raises `UnsupportedError` in a context that remembers."""
        if run.context.remembers:
            raise UnsupportedError(WholeText.REASON)
        return run.context.recur(self.slot, self.state_spec, self.advance, x_TD, run.positions_T)

    def advance(self, state: State, x_BTD: Tensor, positions_BT: Tensor) -> tuple[Tensor, State]:
        if self.rotary is None:
            return self.attention(x_BTD), state
        rotation = self.rotary(positions_BT.flatten(), x_BTD.dtype)

        def rotate(x_BHTd: Tensor) -> Tensor:
            x_BTHd = x_BHTd.transpose(1, 2)
            return rotation(x_BTHd.flatten(0, 1)).view(x_BTHd.shape).transpose(1, 2)

        return self.attention(x_BTD, rotate), state
