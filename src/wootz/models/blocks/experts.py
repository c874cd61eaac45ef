"""Many feed-forward parts side by side: each expert's weights are one slice of a stacked tensor.

The tokens come sorted by expert (see `wootz.models.blocks.moe.dispatch`), so an expert's are neighbours, and a
projection is one grouped product: N rows, of which the first ``counts[0]`` go through expert 0, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.blocks.mlp import ACTIVATIONS, check_activation
from wootz.models.quantized_weight import Multiplies


class GroupedLinear(nn.Module):
    """E projections; ``weight`` is ``(E, out, in)``, ``bias`` ``(E, out)``. For ``into_residual`` see `Linear`."""

    def __init__(
        self, num_experts: int, in_features: int, out_features: int, *, bias: bool = False, into_residual: bool = False
    ) -> None:
        super().__init__()
        self.into_residual = into_residual
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(num_experts, out_features)) if bias else None
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=0.02)
        self.blocks: Sequence[Multiplies] | None = None

    def hold_blocks(self, blocks: Sequence[Multiplies]) -> None:
        """One quantised weight for each expert; see `Linear.hold_blocks`."""
        self.blocks = blocks
        self.register_parameter("weight", None)

    def forward(self, x_ND: Tensor, counts: Sequence[int]) -> Tensor:
        if self.blocks is not None:
            return self._multiply_blocks(self.blocks, x_ND, counts)
        if not grouped_product_is_fused(x_ND):
            # `unbind` because its backward writes one gradient for all experts; that of indexing would write E.
            weights = self.weight.unbind()
            biases = [None] * len(weights) if self.bias is None else self.bias.unbind()
            rows = x_ND.split(list(counts))
            busy = [expert for expert, count in enumerate(counts) if count] or [0]
            return torch.cat([F.linear(rows[expert], weights[expert], biases[expert]) for expert in busy])
        counts_E = torch.tensor(counts, device=x_ND.device)
        y_NO = F.grouped_mm(x_ND, self.weight.transpose(1, 2), offs=counts_E.cumsum(0).to(torch.int32))
        return y_NO if self.bias is None else y_NO + self.bias.repeat_interleave(counts_E, dim=0)

    def _multiply_blocks(self, blocks: Sequence[Multiplies], x_ND: Tensor, counts: Sequence[int]) -> Tensor:
        rows = x_ND.split(list(counts))
        busy = [expert for expert, count in enumerate(counts) if count] or [0]
        biases = [None] * len(blocks) if self.bias is None else self.bias.unbind()
        products = ((blocks[expert].multiply(rows[expert]), biases[expert]) for expert in busy)
        return torch.cat([y if bias is None else y + bias for y, bias in products])


def grouped_product_is_fused(x_ND: Tensor) -> bool:
    """Whether PyTorch has one kernel for all experts; on a CPU it would loop as well, and only for some dtypes."""
    return x_ND.device.type == "cuda" and x_ND.dtype == torch.bfloat16


@dataclass(frozen=True)
class ClampedSwiGLU:
    """gpt-oss: gate and up are kept within ``limit``, the sigmoid is steeper, and up is never quite zero."""

    limit: float = 7.0
    alpha: float = 1.702

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * gate * torch.sigmoid(self.alpha * gate)


class Experts(nn.Module):
    """E gated MLPs: ``down(act(gate(x)) * up(x))``, or what ``activation(gate, up)`` gives. ``(N, D) -> (N, D)``.

    The rows of gate and up lie one block below the other, or by turns if ``interleaved`` (gpt-oss).
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: str | ClampedSwiGLU = "silu",
        bias: bool = False,
        interleaved: bool = False,
    ) -> None:
        super().__init__()
        self.interleaved = interleaved
        self.gate_up = GroupedLinear(num_experts, hidden_size, 2 * intermediate_size, bias=bias)
        self.down = GroupedLinear(num_experts, intermediate_size, hidden_size, bias=bias, into_residual=True)
        self.activation = gated(activation)

    def forward(self, x_ND: Tensor, counts: Sequence[int]) -> Tensor:
        """``counts[e]`` of the N rows, which are in order of their experts, belong to expert e."""
        gate_up = self.gate_up(x_ND, counts)
        gate, up = gate_up.unflatten(-1, (-1, 2)).unbind(-1) if self.interleaved else gate_up.chunk(2, dim=-1)
        return self.down(self.activation(gate, up), counts)


def gated(activation: str | ClampedSwiGLU) -> Callable[[Tensor, Tensor], Tensor]:
    if isinstance(activation, ClampedSwiGLU):
        return activation
    check_activation(activation)
    function = ACTIVATIONS[activation]
    return lambda gate, up: function(gate) * up
