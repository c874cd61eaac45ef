"""LFM2's mixer: a short convolution between two gates, ``out(c * conv(b * x))`` with b, c and x from the token. It sees
the last few tokens only, and leaves the rest to the attention layers among which it stands."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from wootz.models.blocks.short_conv import ShortConv
from wootz.models.blocks.sizes import check_sizes
from wootz.models.linear import Linear
from wootz.models.run import Run


@dataclass(frozen=True)
class GatedConvConfig:
    width: int = 3
    bias: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "width")

    def build(self, hidden_size: int) -> nn.Module:
        return GatedConv(self, hidden_size)


class GatedConv(nn.Module):
    def __init__(self, config: GatedConvConfig, hidden_size: int) -> None:
        super().__init__()
        self.in_proj = Linear(hidden_size, 3 * hidden_size, bias=config.bias)
        self.conv = ShortConv(hidden_size, config.width, bias=config.bias)
        self.out_proj = Linear(hidden_size, hidden_size, bias=config.bias, into_residual=True)

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        b_TD, c_TD, x_TD = self.in_proj(x_TD).chunk(3, dim=-1)
        return self.out_proj(c_TD * self.conv(b_TD * x_TD, run))
