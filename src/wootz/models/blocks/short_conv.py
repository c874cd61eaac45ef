"""A short causal convolution, each channel for itself: what state-space and linear-attention layers see of the last few
tokens before they compress the rest. Its state is the last ``width - 1`` inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wootz.models.blocks.mlp import ACTIVATIONS
from wootz.models.blocks.recurrent import Recurrent
from wootz.models.context import State
from wootz.models.run import Run


class ShortConv(Recurrent):
    """``(T, C)`` to ``(T, C)``. Weights as in a depthwise `torch.nn.Conv1d`; the last tap is the token's own."""

    def __init__(self, channels: int, width: int, *, bias: bool = True, activation: str = "identity") -> None:
        super().__init__((width - 1, channels))
        self.weight = nn.Parameter(torch.empty(channels, 1, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_TC: Tensor, run: Run) -> Tensor:
        return self.recur(run, x_TC)

    def advance(self, state: State, x_BTC: Tensor) -> tuple[Tensor, State]:
        (before_BWC,) = state
        seen_BLC = torch.cat((before_BWC.to(x_BTC.dtype), x_BTC), dim=1)
        length = x_BTC.shape[1]
        # A sum over a handful of shifted copies needs no transposition, and is the same for one token and for many.
        own_C, *older = reversed(self.weight.squeeze(1).unbind(1))
        out_BTC = x_BTC * own_C if self.bias is None else torch.addcmul(self.bias, x_BTC, own_C)
        for age, tap_C in enumerate(older, start=1):
            last = seen_BLC.shape[1] - age
            out_BTC = torch.addcmul(out_BTC, seen_BLC[:, last - length : last], tap_C)
        return self.activation(out_BTC), (seen_BLC[:, length:].to(before_BWC.dtype),)


class TokenShift(Recurrent):
    """Each token gets the input of the one before it: a `ShortConv` that only looks back (RWKV)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__((hidden_size,))

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        return self.recur(run, x_TD)

    @staticmethod
    def advance(state: State, x_BTD: Tensor) -> tuple[Tensor, State]:
        before_B1D = state[0].to(x_BTD.dtype).unsqueeze(1)
        return torch.cat((before_B1D, x_BTD[:, :-1]), dim=1), (x_BTD[:, -1].to(state[0].dtype),)
