"""Which experts a token goes to, and with what weight: a linear router and the k best of its scores.

Always k, never a threshold, so what a token costs is known beforehand. Logits are computed in float32 at least: two
experts whose scores are one rounding apart are two different experts.

`Gates` differ in what the task's gradient tells the router (``docs/moe.md``). Softmax over the selected logits, and
the full softmax renormalised over them, are the same number: it does not depend on the logits that were not selected,
which therefore get exactly no gradient; with k = 1 the weight is 1, and nobody gets any.

Sources: arXiv 1701.06538 (noisy top-k), 2006.16668 and 2101.03961 (capacity), 2405.04434 and 2412.19437 (groups,
sigmoid), 2408.15664 (balancing by a bias).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wootz.models.blocks.sizes import check_sizes

Gates = Literal["softmax_selected", "softmax", "softmax_renormalised", "sigmoid", "sigmoid_renormalised"]
"""An expert's weight, out of the logits:

- softmax_selected: softmax over the selected ones (gpt-oss, Granite); Mixtral's is the same number;
- softmax: over all, so that the weights of the selected sum to less than one (Jamba, OLMoE, DeepSeek-V2);
- softmax_renormalised: over all, divided by the sum of the selected (Mixtral, Qwen3-MoE);
- sigmoid, sigmoid_renormalised: each expert for itself (DeepSeek-V3).
"""


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    num_experts: int
    top_k: int
    gates: Gates = "softmax_selected"
    scaling: float = 1.0
    """Of the weights, at the end."""
    bias: bool = False
    balance_bias: bool = False
    """Add a bias per expert to the scores that select, never to the weights. No gradient moves it;
    `wootz.models.routing.update_balance_bias` does."""
    num_groups: int = 1
    top_groups: int = 1
    """Experts are in groups (of one machine each, say), and a token's are all from its ``top_groups`` best."""
    group_score: Literal["max", "top2"] = "top2"
    """A group is as good as its best expert (DeepSeek-V2), or as its two best together (DeepSeek-V3)."""
    jitter: float = 0.0
    """In training, multiply the router's input by uniform noise in ``1 ± jitter`` (Switch)."""
    noisy: bool = False
    """In training, add Gaussian noise to the logits, of a size that is learned for each expert and token."""
    capacity_factor: float | None = None
    """In training, an expert takes at most ``capacity_factor * T * k / E`` of a pass's T tokens; None: all."""
    overflow: Literal["drop", "next"] = "drop"
    """What is beyond an expert's capacity is dropped, so that the residual stream alone carries it on; or goes to the
    token's next best expert that has room."""

    def __post_init__(self) -> None:
        check_sizes(self, "num_experts", "top_k", "num_groups", "top_groups")
        if self.num_experts % self.num_groups or self.top_groups > self.num_groups:
            raise ValueError(f"{self.top_groups} of {self.num_groups} groups of {self.num_experts} experts")
        if self.top_k > self.num_experts // self.num_groups * self.top_groups:
            raise ValueError(f"{self.top_k} experts per token, but only {self.num_experts} (in groups) to choose from")
        if self.capacity_factor is not None and self.capacity_factor <= 0:
            raise ValueError(f"capacity_factor must be positive, not {self.capacity_factor}")

    def capacity(self, num_tokens: int) -> int | None:
        """How many of T tokens one expert takes in training."""
        if self.capacity_factor is None:
            return None
        return math.ceil(self.capacity_factor * num_tokens * self.top_k / self.num_experts)

    def build(self, hidden_size: int) -> Router:
        return Router(self, hidden_size)


@dataclass(frozen=True)
class Routing:
    """What the router decided in one pass."""

    config: RouterConfig
    logits_TE: Tensor
    experts_Tk: Tensor
    weights_Tk: Tensor
    kept_Tk: Tensor | None = None
    """False where an expert was full; None if no one was turned away."""

    @property
    def probabilities_TE(self) -> Tensor:
        """Each token's scores over all experts, with sum 1."""
        if self.config.gates.startswith("sigmoid"):
            scores_TE = self.logits_TE.sigmoid()
            return scores_TE / scores_TE.sum(-1, keepdim=True)
        return self.logits_TE.softmax(-1)

    @property
    def load_E(self) -> Tensor:
        """How many tokens want each expert, those that found no room included."""
        return self.experts_Tk.flatten().bincount(minlength=self.config.num_experts)


class Router(nn.Module):
    def __init__(self, config: RouterConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.weight_ED = nn.Parameter(torch.empty(config.num_experts, hidden_size))
        self.bias_E = nn.Parameter(torch.zeros(config.num_experts)) if config.bias else None
        self.noise_ED = nn.Parameter(torch.zeros(config.num_experts, hidden_size)) if config.noisy else None
        self.balance_bias_E: Tensor | None
        self.register_buffer("balance_bias_E", torch.zeros(config.num_experts) if config.balance_bias else None)
        if not self.weight_ED.is_meta:
            nn.init.normal_(self.weight_ED, std=0.02)

    def forward(self, x_TD: Tensor) -> Routing:
        logits_TE = self._logits(x_TD)
        experts_Tk, kept_Tk = self._select(logits_TE)
        return Routing(self.config, logits_TE, experts_Tk, self._weights(logits_TE, experts_Tk), kept_Tk)

    def _logits(self, x_TD: Tensor) -> Tensor:
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        x_TD = x_TD.to(dtype)
        if self.training and self.config.jitter:
            x_TD = x_TD * torch.empty_like(x_TD).uniform_(1 - self.config.jitter, 1 + self.config.jitter)
        bias_E = None if self.bias_E is None else self.bias_E.to(dtype)
        logits_TE = F.linear(x_TD, self.weight_ED.to(dtype), bias_E)
        if self.training and self.noise_ED is not None:
            size_TE = F.softplus(F.linear(x_TD, self.noise_ED.to(dtype)))
            logits_TE = logits_TE + torch.randn_like(logits_TE) * size_TE
        return logits_TE

    @torch.no_grad()
    def _select(self, logits_TE: Tensor) -> tuple[Tensor, Tensor | None]:
        config = self.config
        scores_TE = logits_TE  # in the order of what becomes of them, unless something is added up
        if self.balance_bias_E is not None or config.top_groups < config.num_groups:
            scores_TE = logits_TE.sigmoid() if config.gates.startswith("sigmoid") else logits_TE.softmax(-1)
        if self.balance_bias_E is not None:
            scores_TE = scores_TE + self.balance_bias_E
        if config.top_groups < config.num_groups:
            scores_TE = self._best_groups(scores_TE)
        capacity = config.capacity(len(logits_TE)) if self.training else None
        if capacity is None:
            return scores_TE.topk(config.top_k, -1).indices, None
        return admit(scores_TE, config.top_k, capacity, next_best=config.overflow == "next")

    def _best_groups(self, scores_TE: Tensor) -> Tensor:
        """Scores of experts outside of a token's best groups become -inf."""
        config = self.config
        grouped = scores_TE.unflatten(-1, (config.num_groups, -1))
        merit_TG = grouped.amax(-1) if config.group_score == "max" else grouped.topk(2, -1).values.sum(-1)
        best = merit_TG.topk(config.top_groups, -1).indices
        inside_TG = torch.zeros_like(merit_TG, dtype=torch.bool).scatter(-1, best, True)
        return grouped.masked_fill(~inside_TG.unsqueeze(-1), float("-inf")).flatten(-2)

    def _weights(self, logits_TE: Tensor, experts_Tk: Tensor) -> Tensor:
        match self.config.gates:
            case "softmax_selected" | "softmax_renormalised":
                weights_Tk = logits_TE.gather(-1, experts_Tk).softmax(-1)  # one number, without dividing by a tiny sum
            case "softmax":
                weights_Tk = logits_TE.softmax(-1).gather(-1, experts_Tk)
            case "sigmoid" | "sigmoid_renormalised" as gates:
                weights_Tk = logits_TE.gather(-1, experts_Tk).sigmoid()
                if gates == "sigmoid_renormalised":
                    weights_Tk = weights_Tk / (weights_Tk.sum(-1, keepdim=True) + 1e-20)
        return weights_Tk * self.config.scaling

    def _apply(self, fn, recurse=True):  # pyright: ignore[reportMissingParameterType]
        # The balancing bias moves with the model but stays float32: its steps are too small for bfloat16.
        bias_E = self.balance_bias_E
        super()._apply(fn, recurse)
        if bias_E is not None and self.balance_bias_E is not None and self.balance_bias_E.dtype != torch.float32:
            self.balance_bias_E = bias_E.to(self.balance_bias_E.device)
        return self


def admit(scores_TE: Tensor, top_k: int, capacity: int, *, next_best: bool = False) -> tuple[Tensor, Tensor]:
    """Experts ``(T, k)`` of tokens that queue for them, and whether each was let in ``(T, k)``.

    First every token asks its best expert, in order of position, then its second best, and so on; so a first choice is
    never turned away for somebody's second. With ``next_best`` a token that was turned away keeps asking.
    """
    num_tokens, num_experts = scores_TE.shape
    finite_TE = scores_TE.isfinite()
    ranked_TE = scores_TE.argsort(dim=-1, descending=True, stable=True)
    experts_Tk, kept_Tk = ranked_TE[:, :top_k].clone(), torch.zeros_like(ranked_TE[:, :top_k], dtype=torch.bool)
    load_E = ranked_TE.new_zeros(num_experts)
    found_T = ranked_TE.new_zeros(num_tokens)
    rows_T = torch.arange(num_tokens, device=scores_TE.device)
    for rank in range(num_experts if next_best else top_k):
        expert_T = ranked_TE[:, rank]
        asks_T = (found_T < top_k) & finite_TE[rows_T, expert_T]
        place_T = load_E[expert_T] + _place_in_queue(expert_T.masked_fill(~asks_T, num_experts), num_experts + 1)
        admitted_T = asks_T & (place_T < capacity)
        load_E += expert_T[admitted_T].bincount(minlength=num_experts)
        # A later choice takes the place of one that was refused.
        column_T = torch.full_like(found_T, rank) if rank < top_k else kept_Tk.int().argmin(-1)
        rows, columns = rows_T[admitted_T], column_T[admitted_T]
        experts_Tk[rows, columns] = expert_T[admitted_T]
        kept_Tk[rows, columns] = True
        found_T += admitted_T
        if bool((found_T == top_k).all()):
            break
    return experts_Tk, kept_Tk


def _place_in_queue(queue_T: Tensor, num_queues: int) -> Tensor:
    """How many tokens stand before each in its queue."""
    order_T = queue_T.argsort(stable=True)
    start_E = queue_T.bincount(minlength=num_queues).cumsum(0).roll(1)
    start_E[0] = 0
    place_T = torch.empty_like(queue_T)
    place_T[order_T] = torch.arange(len(queue_T), device=queue_T.device) - start_E[queue_T[order_T]]
    return place_T
