"""A sparse mixture of experts (arXiv 1701.06538): each token goes through the k experts its router chooses.

    routing = router(x)  →  tokens sorted by expert  →  experts  →  back in order, weighted, summed

Sorting makes each expert's tokens neighbours, so there is one product per expert and not one per expert and choice.
The sum over a token's experts is taken in the order of its choices, not by scattered additions, so it is the same each
time.

`Router` returns a `Routing`; whoever wants auxiliary losses or telemetry watches the routers from outside
(`wootz.models.routing`), and a model knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wootz.models.blocks.experts import ClampedSwiGLU, Experts, gated
from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.router import RouterConfig, Routing
from wootz.models.blocks.sizes import check_sizes
from wootz.models.linear import Linear
from wootz.models.run import Run


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    router: RouterConfig
    intermediate_size: int
    """Of each expert."""
    activation: str | ClampedSwiGLU = "silu"
    bias: bool = False
    interleaved: bool = False
    """Gate and up rows alternate; see `Experts`."""
    shared: GatedMLPConfig | None = None
    """An expert that every token goes through (S of them of width F are one of width S * F)."""
    shared_gate: bool = False
    """Weigh the shared expert by the sigmoid of a learned score (Qwen2-MoE)."""

    def __post_init__(self) -> None:
        check_sizes(self, "intermediate_size")
        gated(self.activation)
        if self.shared_gate and not self.shared:
            raise ValueError("a gate for shared experts, but no shared experts")

    def build(self, hidden_size: int) -> MoE:
        return MoE(self, hidden_size)


class MoE(nn.Module):
    def __init__(self, config: MoEConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.router = config.router.build(hidden_size)
        self.experts: nn.Module = Experts(
            config.router.num_experts,
            hidden_size,
            config.intermediate_size,
            activation=config.activation,
            bias=config.bias,
            interleaved=config.interleaved,
        )
        self.shared = config.shared.build(hidden_size) if config.shared else None
        self.shared_gate = Linear(hidden_size, 1) if config.shared_gate else None

    def forward(self, x_TD: Tensor, run: Run) -> Tensor:
        y_TD = dispatch(x_TD, self.router(x_TD), self.experts)
        if self.shared is None:
            return y_TD
        shared_TD = self.shared(x_TD, run)
        return y_TD + (shared_TD if self.shared_gate is None else self.shared_gate(x_TD).sigmoid() * shared_TD)


def dispatch(x_TD: Tensor, routing: Routing, experts: Callable[[Tensor, Sequence[int]], Tensor]) -> Tensor:
    """The weighted sum ``(T, D)`` of each token's experts. An expert that was full adds nothing, and costs nothing."""
    num_tokens, top_k = routing.experts_Tk.shape
    num_experts = routing.config.num_experts
    expert_N = routing.experts_Tk.flatten()
    if routing.kept_Tk is not None:
        expert_N = expert_N.masked_fill(~routing.kept_Tk.flatten(), num_experts)  # sorted behind all experts
    counts = expert_N.bincount(minlength=num_experts)[:num_experts].tolist()
    order_N = expert_N.argsort(stable=True)[: sum(counts)]
    # Every choice gets its own copy of the token before sorting, so that the gradient comes back to distinct places.
    copies_ND = x_TD.unsqueeze(1).expand(-1, top_k, -1).flatten(0, 1)
    sorted_ND = experts(copies_ND.index_select(0, order_N), counts)
    y_ND = torch.zeros_like(copies_ND).index_copy(0, order_N, sorted_ND)
    weights_Tk1 = routing.weights_Tk.to(x_TD.dtype).unsqueeze(-1)
    return (y_ND.unflatten(0, (num_tokens, top_k)) * weights_Tk1).sum(1)


def active_parameters(model: nn.Module) -> int:
    """Of the model's parameters, how many one token goes through: all but the experts it does not choose."""
    idle = 0
    for module in model.modules():
        if isinstance(module, MoE):
            router = module.config.router
            each = sum(parameter.numel() for parameter in module.experts.parameters()) // router.num_experts
            idle += (router.num_experts - router.top_k) * each
    return sum(parameter.numel() for parameter in model.parameters()) - idle
