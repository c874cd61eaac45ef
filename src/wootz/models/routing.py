"""What routers decided: auxiliary losses that keep experts equally busy, and numbers that say whether they are.

    with watch_routing(model) as routings:
        logits = model.unembed(model(tokens, positions, context))
    loss = cross_entropy(logits, targets) + 0.01 * balance_loss(routings) + 0.001 * z_loss(routings)
    …
    for router, routing in routings.items():
        update_balance_bias(router, routing.load_E)

Nothing of this is in the model: `watch_routing` hears what each `Router` returns, and only while it is open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wootz.models.blocks.router import Router, Routing

Routings = Mapping[Router, Routing]
"""Each router's latest decision, in the order of the layers."""


@contextmanager
def watch_routing(model: nn.Module) -> Iterator[Routings]:
    """The `Routing` of every router that runs inside of the ``with``; a second pass replaces the first's."""
    routings: dict[Router, Routing] = {}

    def heard(router: nn.Module, _: object, routing: Routing) -> None:
        assert isinstance(router, Router)
        routings[router] = routing

    hooks = [module.register_forward_hook(heard) for module in model.modules() if isinstance(module, Router)]
    try:
        yield routings
    finally:
        for hook in hooks:
            hook.remove()


def balance_loss(routings: Routings) -> Tensor:
    """Switch's auxiliary loss (arXiv 2101.03961), ``E * sum_e f_e p_e``, averaged over routers; multiply by alpha.

    f_e is the share of choices (of all T * k) that fell on expert e, p_e its mean probability. Uniform routing gives 1,
    the least where f and p agree. Only p has a gradient.
    """
    losses = []
    for routing in routings.values():
        share_E = routing.load_E / routing.experts_Tk.numel()
        losses.append(routing.config.num_experts * (share_E * routing.probabilities_TE.mean(0)).sum())
    return torch.stack(losses).mean()


def z_loss(routings: Routings) -> Tensor:
    """Mean of ``logsumexp(logits)^2`` (ST-MoE, arXiv 2202.08906): keeps router logits small, where softmax is exact."""
    return torch.stack([routing.logits_TE.logsumexp(-1).square().mean() for routing in routings.values()]).mean()


@torch.no_grad()
def update_balance_bias(router: Router, load_E: Tensor, rate: float = 1e-3) -> None:
    """After a batch: ``b_e -= rate * sign(load_e - mean load)`` (arXiv 2408.15664), with the load of all ranks."""
    if router.balance_bias_E is None:
        raise ValueError("this router has no balancing bias (RouterConfig.balance_bias)")
    load_E = load_E.to(router.balance_bias_E)
    router.balance_bias_E -= rate * torch.sign(load_E - load_E.mean())


@dataclass(frozen=True)
class RoutingReport:
    """How busy one router kept its experts, over T tokens."""

    load: tuple[int, ...]
    """Tokens that chose each expert."""
    max_over_mean: float
    """1 if all are equally busy; the slowest rank's work in units of the average one's."""
    load_entropy: float
    """Of the load's shares, divided by log E: 1 if all are equally busy, 0 if one does everything."""
    token_entropy: float
    """Mean entropy of a token's probabilities, divided by log E: 0 if the router is always certain."""
    dead: tuple[int, ...]
    """Experts that nobody chose."""
    drop_rate: float
    """Share of choices that found their expert full."""

    choices_per_token: float

    @classmethod
    @torch.no_grad()
    def of(cls, routing: Routing) -> RoutingReport:
        kept_Tk = routing.kept_Tk
        return cls.of_sums(
            routing.load_E,
            num_tokens=len(routing.experts_Tk),
            entropy=_entropy(routing.probabilities_TE).sum().item(),
            turned_away=0.0 if kept_Tk is None else (~kept_Tk).sum().item(),
        )

    @classmethod
    def of_sums(cls, load_E: Tensor, *, num_tokens: int, entropy: float, turned_away: float) -> RoutingReport:
        """Of any number of passes: their loads, tokens, tokens' entropies in nats, and refused choices added up."""
        entropy_of_uniform = torch.log(torch.tensor(max(2.0, load_E.numel())))
        return cls(
            load=tuple(load_E.tolist()),
            max_over_mean=(load_E.max() / load_E.float().mean()).item(),
            load_entropy=(_entropy(load_E / load_E.sum()) / entropy_of_uniform).item(),
            token_entropy=entropy / num_tokens / entropy_of_uniform.item(),
            dead=tuple((load_E == 0).nonzero().flatten().tolist()),
            drop_rate=turned_away / load_E.sum().item(),
            choices_per_token=load_E.sum().item() / num_tokens,
        )


def _entropy(shares: Tensor) -> Tensor:
    return -torch.xlogy(shares, shares).sum(-1)
