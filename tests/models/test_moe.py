"""Experts by property: routing modes, dispatch, capacity, balancing. Whole families are in `test_moe_families`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from wootz.models import PackedContext
from wootz.models.blocks import experts as experts_module
from wootz.models.blocks.experts import ClampedSwiGLU, GroupedLinear
from wootz.models.blocks.mlp import GatedMLPConfig
from wootz.models.blocks.moe import MoE, MoEConfig, active_parameters, dispatch
from wootz.models.blocks.router import Gates, RouterConfig, Routing, admit
from wootz.models.routing import RoutingReport, balance_loss, update_balance_bias, watch_routing, z_loss
from wootz.models.run import Run

D, F_WIDTH = 12, 10
GATES: tuple[Gates, ...] = (
    "softmax_selected",
    "softmax",
    "softmax_renormalised",
    "sigmoid",
    "sigmoid_renormalised",
)


def build(router: RouterConfig, seed: int = 0, **options: object) -> MoE:
    """In float64, with weights large enough to route decidedly."""
    torch.manual_seed(seed)
    moe = MoEConfig(router=router, intermediate_size=F_WIDTH, **options).build(D).double()  # pyright: ignore
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return moe


def run_of(num_tokens: int) -> Run:
    return Run(torch.arange(num_tokens), PackedContext([num_tokens]))


def tokens(num_tokens: int = 40, seed: int = 1) -> Tensor:
    return torch.randn(num_tokens, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_by_one(moe: MoE, x_TD: Tensor, routing: Routing) -> Tensor:
    """What the formula says: y = sum_i g_i E_i(x), token by token, choice by choice."""
    outputs = []
    for row, x_D in enumerate(x_TD):
        y_D = torch.zeros_like(x_D)
        for choice, expert in enumerate(routing.experts_Tk[row].tolist()):
            if routing.kept_Tk is not None and not routing.kept_Tk[row, choice]:
                continue
            gate_up, down = moe.experts.gate_up, moe.experts.down
            h = gate_up.weight[expert] @ x_D + (0 if gate_up.bias is None else gate_up.bias[expert])
            gate, up = (h[::2], h[1::2]) if moe.experts.interleaved else h.chunk(2)
            y = down.weight[expert] @ moe.experts.activation(gate, up)
            y_D = y_D + routing.weights_Tk[row, choice] * (y + (0 if down.bias is None else down.bias[expert]))
        outputs.append(y_D)
    return torch.stack(outputs)


@pytest.mark.parametrize(
    ("router", "options"),
    [
        *[({"gates": gates, "scaling": 2.5}, {}) for gates in GATES],
        ({"bias": True}, {"bias": True, "interleaved": True, "activation": ClampedSwiGLU(1.0)}),
        ({"capacity_factor": 0.6}, {"activation": "gelu"}),
        ({"capacity_factor": 0.6, "overflow": "next"}, {}),
        ({"num_groups": 3, "top_groups": 2, "gates": "sigmoid", "balance_bias": True}, {}),
    ],
)
def test_grouped_dispatch_equals_the_formula(router: dict, options: dict) -> None:
    moe = build(RouterConfig(num_experts=6, top_k=2, **router), **options)
    x_TD = tokens().requires_grad_()
    routing = moe.router(x_TD)
    ours, expected = dispatch(x_TD, routing, moe.experts), one_by_one(moe, x_TD, routing)
    torch.testing.assert_close(ours, expected)
    learned = [x_TD, *moe.parameters()]
    direction = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad((ours * direction).sum(), learned, retain_graph=True),
        torch.autograd.grad((expected * direction).sum(), learned),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("gates", ["softmax_selected", "softmax", "softmax_renormalised"])
def test_all_experts_chosen_is_the_dense_mixture(gates: Gates) -> None:
    moe, x_TD = build(RouterConfig(num_experts=4, top_k=4, gates=gates)), tokens()
    each_ETD = torch.stack([moe.experts(x_TD, [40 if e == i else 0 for i in range(4)]) for e in range(4)])
    weights_TE = F.linear(x_TD, moe.router.weight_ED).softmax(-1)
    torch.testing.assert_close(moe(x_TD, run_of(40)), torch.einsum("te,etd->td", weights_TE, each_ETD))


def router_gradient(gates: Gates, top_k: int) -> tuple[Tensor, Tensor]:
    """The task's gradient at the logits ``(T, E)``, and which of them were selected."""
    moe, x_TD = build(RouterConfig(num_experts=5, top_k=top_k, gates=gates)), tokens()
    logits_TE = F.linear(x_TD, moe.router.weight_ED).detach().requires_grad_()
    experts_Tk = logits_TE.topk(top_k, -1).indices
    routing = Routing(moe.config.router, logits_TE, experts_Tk, moe.router._weights(logits_TE, experts_Tk))
    dispatch(x_TD, routing, moe.experts).square().sum().backward()
    assert logits_TE.grad is not None
    return logits_TE.grad, torch.zeros_like(logits_TE, dtype=torch.bool).scatter(-1, experts_Tk, True)


@pytest.mark.parametrize("gates", ["softmax_selected", "softmax_renormalised"])
def test_renormalised_weights_tell_unselected_logits_exactly_nothing(gates: Gates) -> None:
    gradient, selected = router_gradient(gates, top_k=2)
    assert gradient[~selected].abs().max() == 0
    assert gradient[selected].abs().min() > 0
    gradient, _ = router_gradient(gates, top_k=1)  # the weight is always 1
    assert gradient.abs().max() == 0


def test_plain_softmax_tells_every_logit_something_and_a_sigmoid_the_selected() -> None:
    gradient, _ = router_gradient("softmax", top_k=1)
    assert gradient.abs().min() > 0
    gradient, selected = router_gradient("sigmoid", top_k=1)
    assert gradient[selected].abs().min() > 0
    assert gradient[~selected].abs().max() == 0
    gradient, _ = router_gradient("sigmoid_renormalised", top_k=1)
    assert gradient.abs().max() < 1e-12


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.integers(1, 12), st.booleans(), st.integers(0, 10**6)
)
def test_admission_is_fair_and_exact(
    num_tokens: int, num_experts: int, top_k: int, capacity: int, next_best: bool, seed: int
) -> None:
    top_k = min(top_k, num_experts)
    scores_TE = torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(seed))
    experts_Tk, kept_Tk = admit(scores_TE, top_k, capacity, next_best=next_best)
    load = [0] * num_experts
    wanted: list[list[int]] = [[] for _ in range(num_tokens)]
    for rank in range(num_experts if next_best else top_k):
        for token in range(num_tokens):
            expert = scores_TE[token].argsort(descending=True)[rank].item()
            if len(wanted[token]) < top_k and load[expert] < capacity:
                load[expert] += 1
                wanted[token].append(expert)
    for token in range(num_tokens):
        assert sorted(experts_Tk[token][kept_Tk[token]].tolist()) == sorted(wanted[token])
        assert len(set(experts_Tk[token].tolist())) == top_k
    if next_best:  # nobody stands outside while there is room for one that it has not got
        free = {expert for expert in range(num_experts) if load[expert] < capacity}
        assert all(free <= set(chosen) for chosen in wanted if len(chosen) < top_k)


def test_dropped_tokens_keep_only_the_residual_and_the_count_is_exact() -> None:
    moe = build(RouterConfig(num_experts=4, top_k=1, capacity_factor=1.0, gates="softmax"))
    moe.router.weight_ED.data[0] = 50 * tokens(1)[0]  # one expert is everybody's first choice
    x_TD = tokens(1).expand(40, -1).clone()
    with watch_routing(moe) as routings:
        y_TD = moe(x_TD, run_of(40))
    assert RoutingReport.of(routings[moe.router]).drop_rate == pytest.approx(30 / 40)
    assert y_TD[:10].abs().min() > 0  # in order of position
    assert y_TD[10:].abs().max() == 0
    moe.eval()
    with watch_routing(moe) as routings:
        y_TD = moe(x_TD, run_of(40))
    assert routings[moe.router].kept_Tk is None
    assert y_TD.abs().min() > 0


def test_noise_is_for_training_and_is_learned() -> None:
    moe, x_TD = build(RouterConfig(num_experts=4, top_k=2, jitter=0.3, noisy=True)), tokens()
    assert not moe.router(x_TD).logits_TE.equal(moe.router(x_TD).logits_TE)
    moe(x_TD, run_of(40)).sum().backward()
    assert moe.router.noise_ED.grad.abs().max() > 0
    moe.eval()
    torch.testing.assert_close(moe.router(x_TD).logits_TE, F.linear(x_TD, moe.router.weight_ED), rtol=0, atol=0)


def test_shared_experts_are_added_and_may_be_weighed() -> None:
    router = RouterConfig(num_experts=4, top_k=2)
    moe = build(router, shared=GatedMLPConfig(9), shared_gate=True)
    x_TD = tokens()
    routed_TD = dispatch(x_TD, moe.router(x_TD), moe.experts)
    weight_T1 = torch.sigmoid(x_TD @ moe.shared_gate.weight.T)
    torch.testing.assert_close(moe(x_TD, run_of(40)), routed_TD + weight_T1 * moe.shared(x_TD, run_of(40)))


def test_the_fused_product_equals_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    projection = GroupedLinear(4, 16, 8, bias=True)
    torch.nn.init.normal_(projection.bias)
    x_ND, counts = torch.randn(20, 16), [5, 0, 7, 8]
    expected = projection(x_ND, counts)
    monkeypatch.setattr(experts_module, "grouped_product_is_fused", lambda x: True)
    torch.testing.assert_close(projection(x_ND, counts), expected)


def uniform(num_experts: int = 4, top_k: int = 2) -> Routing:
    """Every expert is chosen equally often, and equally probable."""
    choices = torch.arange(40 * top_k).remainder(num_experts).view(40, top_k)
    config = RouterConfig(num_experts=num_experts, top_k=top_k)
    return Routing(config, torch.zeros(40, num_experts), choices, torch.full((40, top_k), 1 / top_k))


def test_losses_are_least_where_experts_are_equally_busy() -> None:
    moe = build(RouterConfig(num_experts=4, top_k=2, gates="softmax"))
    even = {moe.router: uniform()}
    assert balance_loss(even).item() == pytest.approx(1.0)
    assert z_loss(even).item() == pytest.approx(torch.tensor(4.0).log().square().item())
    with watch_routing(moe) as routings:
        moe(tokens() + 1, run_of(40))
    loss = balance_loss(routings)
    assert loss.item() > 1.01
    loss.backward()
    gradient = moe.router.weight_ED.grad
    assert gradient is not None
    moe.router.weight_ED.data -= 0.5 * gradient
    with watch_routing(moe) as again:
        moe(tokens() + 1, run_of(40))
    assert balance_loss(again).item() < loss.item()


def test_balance_loss_is_that_of_transformers_divided_by_k() -> None:
    moe = build(RouterConfig(num_experts=5, top_k=2, gates="softmax"))
    with watch_routing(moe) as routings:
        moe(tokens(), run_of(40))
    theirs = load_balancing_loss_func((routings[moe.router].logits_TE,), num_experts=5, top_k=2)
    torch.testing.assert_close(2 * balance_loss(routings), theirs.double(), rtol=1e-5, atol=0)


def test_nobody_listens_after_the_watch() -> None:
    moe = build(RouterConfig(num_experts=4, top_k=2))
    with watch_routing(moe) as routings:
        pass
    moe(tokens(), run_of(40))
    assert not routings


def test_the_bias_balances_a_skewed_router_and_never_enters_the_weights() -> None:
    moe = build(RouterConfig(num_experts=8, top_k=2, gates="sigmoid_renormalised", balance_bias=True))
    moe.router.weight_ED.data[0] += 1.0
    x_TD = tokens(400) + 0.5
    start = RoutingReport.of(moe.router(x_TD))
    assert start.max_over_mean > 2
    for _ in range(300):
        update_balance_bias(moe.router, moe.router(x_TD).load_E, rate=5e-3)
    routing = moe.router(x_TD)
    assert RoutingReport.of(routing).max_over_mean < 1.15
    scores_Tk = routing.logits_TE.sigmoid().gather(-1, routing.experts_Tk)
    torch.testing.assert_close(routing.weights_Tk, scores_Tk / scores_Tk.sum(-1, keepdim=True))
    assert "balance_bias_E" in moe.router.state_dict()
    assert "balance_bias_E" not in dict(moe.router.named_parameters())
    assert moe.to(torch.bfloat16).router.balance_bias_E.dtype == torch.float32


def test_telemetry_counts_what_happened() -> None:
    report = RoutingReport.of(uniform())
    assert report.load == (20, 20, 20, 20)
    assert report.max_over_mean == 1
    assert (report.load_entropy, report.token_entropy) == (pytest.approx(1), pytest.approx(1))
    collapsed = uniform()
    collapsed.experts_Tk.fill_(1)
    report = RoutingReport.of(collapsed)
    assert report.load == (0, 80, 0, 0)
    assert report.max_over_mean == 4
    assert report.dead == (0, 2, 3)
    assert report.load_entropy == pytest.approx(0)


def test_active_parameters_leave_out_the_experts_not_chosen() -> None:
    moe = MoEConfig(router=RouterConfig(num_experts=8, top_k=2), intermediate_size=F_WIDTH).build(D)
    assert active_parameters(moe) == 8 * D + 2 * 3 * D * F_WIDTH
    assert sum(parameter.numel() for parameter in moe.parameters()) == 8 * D + 8 * 3 * D * F_WIDTH


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"num_experts": 4, "top_k": 5}, "5 experts per token"),
        ({"num_experts": 6, "top_k": 1, "num_groups": 4}, "4 groups of 6 experts"),
        ({"num_experts": 6, "top_k": 3, "num_groups": 3, "top_groups": 1}, "3 experts per token"),
        ({"num_experts": 4, "top_k": 2, "capacity_factor": 0.0}, "must be positive"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        RouterConfig(**wrong)
