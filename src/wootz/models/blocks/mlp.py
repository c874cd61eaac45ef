"""Feed-forward layers: gated (SwiGLU and its kin, arXiv 2002.05202) and plain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.kernels import training
from wootz.models.blocks.sizes import check_sizes
from wootz.models.linear import Linear
from wootz.models.run import Run

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}
"""By the names of Hugging Face configs. As a gate, "silu" is SwiGLU, "gelu" GEGLU, "relu" ReGLU, "sigmoid" GLU."""


def check_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise ValueError(f'activation "{name}" is not supported ({", ".join(ACTIVATIONS)} are)')


def gated_width(plain_width: int, multiple_of: int = 1) -> int:
    """The inner width at which a gated MLP, with its three matrices, has the parameters of a plain one with two:
    2/3 of the plain width, rounded up to a multiple."""
    return -(-2 * plain_width // (3 * multiple_of)) * multiple_of


@dataclass(frozen=True)
class GatedMLPConfig:
    intermediate_size: int
    activation: str = "silu"
    bias: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "intermediate_size")
        check_activation(self.activation)

    def build(self, hidden_size: int) -> nn.Module:
        return GatedMLP(self, hidden_size)


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``."""

    def __init__(self, config: GatedMLPConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.gate_up = Linear(hidden_size, (config.intermediate_size,) * 2, bias=config.bias)
        self.down = Linear(config.intermediate_size, hidden_size, bias=config.bias, into_residual=True)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        gate_up_TF2 = self.gate_up(x_TD)
        if self.config.activation in training.ACTIVATIONS and training.serves(gate_up_TF2):
            return self.down(training.gated(gate_up_TF2, self.config.activation))
        gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
        return self.down(self.activation(gate_TF) * up_TF)


@dataclass(frozen=True)
class MLPConfig:
    intermediate_size: int
    activation: str = "gelu"
    bias: bool = True

    def __post_init__(self) -> None:
        check_sizes(self, "intermediate_size")
        check_activation(self.activation)

    def build(self, hidden_size: int) -> nn.Module:
        return MLP(self, hidden_size)


class MLP(nn.Module):
    """``down(act(up(x)))``."""

    def __init__(self, config: MLPConfig, hidden_size: int) -> None:
        super().__init__()
        self.up = Linear(hidden_size, config.intermediate_size, bias=config.bias)
        self.down = Linear(config.intermediate_size, hidden_size, bias=config.bias, into_residual=True)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        return self.down(self.activation(self.up(x_TD)))
