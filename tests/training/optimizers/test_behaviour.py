"""What every optimiser promises (resume, state, groups), and the failures that each was made against."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from wootz.core.errors import BadRequestError, ConfigError
from wootz.training.optimizers import (
    ALGORITHMS,
    OptimizerConfig,
    build_optimizer,
    evaluation_mode,
    refresh_curvature,
    set_rate,
)
from wootz.training.optimizers.hessian_diagonal import gauss_newton_diagonal, hutchinson_diagonal
from wootz.training.optimizers.memory import advice, plan_memory, state_bytes, table

NAMES = list(ALGORITHMS)


def small_model(seed: int = 0, width: int = 12) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(11, width), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 11))


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rate: float) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tokens_N = torch.randint(11, (16,), generator=generator)
        set_rate(optimizer, rate * min(1.0, (step + 1) / 4))
        refresh_curvature(optimizer, lambda tokens_N=tokens_N: model(tokens_N))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens_N).float(), (tokens_N + 1) % 11).backward()
        optimizer.step()


def config_of(name: str, **settings: Any) -> OptimizerConfig:
    rate = 1.0 if name in ("prodigy", "d-adaptation") else 0.003
    return OptimizerConfig(name=name, learning_rate=rate, **settings)


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    config = config_of(name)
    width = 72 if name == "adamw-8bit" else 12  # smaller parameters are not quantised
    whole = small_model(width=width).to(dtype)
    optimizer = build_optimizer(whole, config)
    learn(whole, optimizer, range(7), config.learning_rate)
    weights, state = copy.deepcopy(whole.state_dict()), copy.deepcopy(optimizer.state_dict())
    learn(whole, optimizer, range(7, 25), config.learning_rate)
    resumed = small_model(seed=1, width=width).to(dtype)
    again = build_optimizer(resumed, config)
    resumed.load_state_dict(weights)
    again.load_state_dict(state)
    learn(resumed, again, range(7, 25), config.learning_rate)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["adamw", "lion", "sophia", "adamw-8bit", "schedule-free", "prodigy", "muon"])
def test_state_goes_through_a_distributed_checkpoint(name: str) -> None:
    config = config_of(name)
    whole = small_model()
    optimizer = build_optimizer(whole, config)
    learn(whole, optimizer, range(5), config.learning_rate)
    state = copy.deepcopy(get_optimizer_state_dict(whole, optimizer))
    resumed = small_model(seed=1)
    resumed.load_state_dict(whole.state_dict())
    again = build_optimizer(resumed, config)
    set_optimizer_state_dict(resumed, again, state)
    learn(whole, optimizer, range(5, 10), config.learning_rate)
    learn(resumed, again, range(5, 10), config.learning_rate)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["adamw", "schedule-free", "prodigy"])
def test_losing_the_step_or_the_state_is_another_run(name: str) -> None:
    config = config_of(name)
    model = small_model()
    optimizer = build_optimizer(model, config)
    learn(model, optimizer, range(5), config.learning_rate)
    forgetful = copy.deepcopy(model)
    learn(forgetful, build_optimizer(forgetful, config), range(5, 6), config.learning_rate)
    learn(model, optimizer, range(5, 6), config.learning_rate)
    assert not torch.equal(model[1].weight, forgetful[1].weight)


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_state_takes_the_bytes_that_the_table_says(name: str) -> None:
    model = small_model(width=80)
    optimizer = build_optimizer(model, config_of(name))
    learn(model, optimizer, range(1), 1e-3)
    measured = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, Tensor) and key != "step"
    )
    shapes = [(tuple(parameter.shape), index > 0) for index, parameter in enumerate(model.parameters())]
    assert measured == sum(state_bytes(name, shape, hidden=hidden) for shape, hidden in shapes)


def test_bytes_per_parameter_of_the_common_ones() -> None:
    expected = {
        "sgd": 0,
        "momentum": 4,
        "adam": 8,
        "adamw": 8,
        "lion": 4,
        "sophia": 8,
        "schedule-free": 8,
        "prodigy": 16,
    }
    assert {name: table()[name] for name in expected} == expected
    assert table()["adamw-8bit"] == pytest.approx(2 + 8 / 256)
    assert table()["adafactor"] < 0.01  # rows and columns, and not the 2 bytes that are often quoted


def test_seven_billion_parameters_by_hand() -> None:
    plan = plan_memory(7e9, "adamw", weights="bf16", master=True)
    assert (plan.weights, plan.gradients, plan.master, plan.state) == (14e9, 14e9, 28e9, 56e9)
    assert plan.total == 112e9
    assert plan_memory(7e9, "adamw", master=False).total == 84e9
    spread = plan_memory(7e9, "adamw", shards=8)
    assert (spread.weights, spread.master, spread.state) == (14e9, 3.5e9, 7e9)
    assert "4.0 times the weights" in (advice(plan, "adamw") or "")
    assert advice(spread, "adamw") is None
    with pytest.raises(ConfigError, match="fp8"):
        plan_memory(1, weights="fp8")


def test_averages_in_half_precision_stand_still_and_ours_do_not() -> None:
    def average(dtype: torch.dtype) -> float:
        second = torch.ones((), dtype=dtype)
        for _ in range(5000):
            second.mul_(0.999).add_(torch.tensor(0.25, dtype=dtype) * 0.001)
        return second.item()

    assert average(torch.bfloat16) > 0.9
    assert average(torch.float32) == pytest.approx(0.25, abs=0.01)
    weight = nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16))
    for name in NAMES:
        optimizer = build_optimizer([weight], config_of(name))
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        kept = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
        assert {value.dtype for value in kept if value.is_floating_point()} == {torch.float32}, name
        assert torch.equal(optimizer.state[weight]["master"].bfloat16(), weight), name


def test_updates_too_small_for_bfloat16_add_up() -> None:
    plain, mastered = (nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16)) for _ in range(2))
    lost = torch.optim.SGD([plain], lr=1e-4)
    kept = build_optimizer([mastered], OptimizerConfig(name="sgd", learning_rate=1e-4))
    for _ in range(1000):
        plain.grad, mastered.grad = torch.ones_like(plain), torch.ones_like(mastered)
        lost.step()
        kept.step()
    assert torch.equal(plain, torch.ones_like(plain))
    torch.testing.assert_close(mastered, torch.full_like(mastered, 0.9), rtol=0.01, atol=0)


# --- groups and decay -------------------------------------------------------------------------------------------------


class Layered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)


def test_every_parameter_is_in_one_group_and_vectors_do_not_decay() -> None:
    for name in NAMES:
        model = Layered()
        optimizer = build_optimizer(model, config_of(name, weight_decay=0.3, decay="decoupled", layer_decay=0.8))
        found = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        assert sorted(found) == sorted(map(id, model.parameters()))
        for group in optimizer.param_groups:
            decays = group.get("decoupled_decay", group["weight_decay"])
            assert {parameter.ndim > 1 for parameter in group["params"]} == {decays > 0}, name


def test_lower_layers_learn_slower_and_no_schedule_flattens_that() -> None:
    model = Layered()
    optimizer = build_optimizer(model, config_of("adamw", layer_decay=0.5))
    set_rate(optimizer, 0.8)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert found["embedding.weight"] == pytest.approx(0.1)
    assert [found[f"layers.{layer}.weight"] for layer in range(3)] == pytest.approx([0.2, 0.4, 0.8])
    assert found["head.weight"] == found["norm.weight"] == 0.8


def test_frozen_parameters_are_left_out() -> None:
    model = Layered()
    model.embedding.requires_grad_(False)
    optimizer = build_optimizer(model, config_of("adamw"))
    found = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert id(model.embedding.weight) not in found
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer(model.requires_grad_(False), config_of("adamw"))


def one_step(name: str, weight: float, gradients: list[float], **settings: Any) -> float:
    parameter = nn.Parameter(torch.full((1, 1), weight, dtype=torch.float64))
    optimizer = build_optimizer([parameter], OptimizerConfig(name=name, **settings))
    for gradient in gradients:
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    return parameter.item()


def test_l2_and_decay_are_one_under_sgd_and_two_under_adam() -> None:
    settings = {"learning_rate": 0.01, "weight_decay": 0.1}
    under_sgd = [one_step("sgd", 2.0, [0.5], decay=decay, **settings) for decay in ("l2", "decoupled")]
    assert under_sgd[0] == pytest.approx(under_sgd[1], rel=1e-12)
    for gradient in (
        1.0,
        100.0,
    ):  # How much more a weight moves for its decay: with L2 the less, the larger its history.
        history = [gradient, -gradient] * 20
        plain = one_step("adamw", 2.0, history, learning_rate=0.01, weight_decay=0.0)
        decayed = [plain - one_step("adamw", 2.0, history, decay=decay, **settings) for decay in ("l2", "decoupled")]
        assert decayed[1] == pytest.approx(2.0 * (1 - (1 - 0.001) ** 40), rel=0.05)
        assert decayed[0] == pytest.approx(0.2 / gradient * 0.01 * 40, rel=0.6)


def test_independent_decay_does_not_follow_the_peak_but_follows_the_schedule() -> None:
    for rate in (0.01, 0.02):
        weight = nn.Parameter(torch.full((1, 1), 2.0, dtype=torch.float64))
        config = OptimizerConfig(name="adamw", learning_rate=rate, weight_decay=0.05, decay="independent")
        optimizer = build_optimizer([weight], config)
        for multiplier in (1.0, 0.5):
            set_rate(optimizer, rate * multiplier)
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
        assert weight.item() == pytest.approx(2 * 0.95 * 0.975)


def test_settings_that_have_no_place_are_one_error() -> None:
    with pytest.raises(ConfigError, match='no optimiser "adamm"'):
        build_optimizer(Layered(), OptimizerConfig(name="adamm"))
    with pytest.raises(ConfigError, match="lion has no L2"):
        build_optimizer(Layered(), OptimizerConfig(name="lion", decay="l2"))
    with pytest.raises(ConfigError, match=r"optimiser lion: .*beta9"):
        build_optimizer(Layered(), OptimizerConfig(name="lion", extra={"beta9": 1}))
    with pytest.raises(ConfigError, match="above 0"):
        build_optimizer(Layered(), OptimizerConfig(learning_rate=0.0))


# --- the failures that they were made against -------------------------------------------------------------------------


def test_the_first_step_of_adam_is_the_rate_whatever_the_gradient() -> None:
    for gradient in (1e-3, 1.0, 1e3):
        assert 1 - one_step("adam", 1.0, [gradient], learning_rate=0.01) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_of_nothing_is_no_division_by_nothing(name: str) -> None:
    settings = {"learning_rate": 0.01, "weight_decay": 0.0}
    assert one_step(name, 1.0, [0.0, 0.0], **settings) == 1.0


def test_momentum_at_the_same_rate_is_ten_times_the_step_and_diverges() -> None:
    def distance(name: str, rate: float) -> float:
        weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        optimizer = build_optimizer([weight], OptimizerConfig(name=name, learning_rate=rate, momentum=0.9))
        optimizer.param_groups[0]["momentum"] = 0.0 if name == "sgd" else 0.9
        for step in range(400):
            weight.grad = weight.detach() * (1.0 if step % 2 else 39.0)  # mini-batches that disagree
            optimizer.step()
        return abs(weight.item())

    assert distance("sgd", 0.049) < 1e-3
    assert distance("momentum", 0.049) > 1e3
    assert distance("momentum", 0.0049) < 1e-3


def test_momentum_amplifies_a_constant_gradient_by_one_over_one_minus_beta() -> None:
    steps = [1.0] * 300
    travelled = one_step("momentum", 0.0, [*steps, 1.0], learning_rate=0.01) - one_step(
        "momentum", 0.0, steps, learning_rate=0.01
    )
    assert travelled == pytest.approx(-0.01 / (1 - 0.9), rel=1e-9)


def test_adagrad_suffocates_and_rmsprop_recovers() -> None:
    def effective(name: str) -> list[float]:
        weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = build_optimizer([weight], OptimizerConfig(name=name, learning_rate=0.1))
        rates = []
        for step in range(120):
            gradient = 10.0 if step < 60 else 1.0
            weight.grad, before = torch.full_like(weight, gradient), weight.item()
            optimizer.step()
            rates.append((before - weight.item()) / gradient)
        return rates

    adagrad, rmsprop = effective("adagrad"), effective("rmsprop")
    assert all(later < earlier for earlier, later in pairwise(adagrad))
    assert rmsprop[59] == pytest.approx(0.1 / 10, rel=0.1)
    assert rmsprop[-1] == pytest.approx(0.1 / 1, rel=0.1)


def test_lion_takes_the_sign_of_the_old_memory() -> None:
    # After g = 1 the memory is 0.01. At g = -0.085 that gives c = 0.9 * 0.01 - 0.1 * 0.085 > 0; with the memory that
    # g has already gone into (0.00905) it would be c < 0, and a step the other way.
    settings: dict[str, Any] = {"learning_rate": 1.0, "weight_decay": 0.0}
    assert one_step("lion", 0.0, [1.0], **settings) == -1.0
    assert one_step("lion", 0.0, [1.0, -0.085], **settings) == -2.0


def test_sophia_without_its_clip_would_run_away_where_curvature_is_not_positive() -> None:
    for curvature in (-5.0, 0.0, 1e-9):
        weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer: Any = build_optimizer([weight], OptimizerConfig(name="sophia", learning_rate=0.01))
        assert optimizer.wants_curvature
        optimizer.observe_curvature([torch.full((3,), curvature)])
        weight.grad = torch.tensor([1.0, -1e3, 1e-3], dtype=torch.float64)
        optimizer.step()
        assert weight.tolist() == pytest.approx([-0.01, 0.01, -0.01])
        assert not optimizer.wants_curvature


def test_schedule_free_does_not_step_where_it_is_judged_and_looking_changes_nothing() -> None:
    config = config_of("schedule-free")
    looked, alone = small_model(), small_model()
    first, second = build_optimizer(looked, config), build_optimizer(alone, config)
    for step in range(12):
        learn(looked, first, range(step, step + 1), 0.003)
        learn(alone, second, range(step, step + 1), 0.003)
        with evaluation_mode(first):
            assert step == 0 or not torch.equal(looked[1].weight, alone[1].weight)
    assert all(torch.equal(one, other) for one, other in zip(looked.parameters(), alone.parameters(), strict=True))
    with evaluation_mode(first), pytest.raises(BadRequestError, match=r"train\(\)"):
        learn(looked, first, range(1), 0.003)


def test_x_is_the_mean_of_all_z() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = build_optimizer([weight], OptimizerConfig(name="schedule-free-sgd", learning_rate=0.5))
    visited = []
    for step in range(30):
        weight.grad = torch.tensor([math.sin(step)], dtype=torch.float64)
        optimizer.step()
        visited.append(optimizer.state[weight]["z"].item())
    with evaluation_mode(optimizer):
        assert weight.item() == pytest.approx(np.mean(visited))


def test_the_distance_to_the_optimum_is_found_without_a_rate() -> None:
    for name in ("prodigy", "d-adaptation"):
        target = torch.linspace(-3, 3, 20, dtype=torch.float64)
        weight = nn.Parameter(torch.zeros(20, dtype=torch.float64))
        optimizer: Any = build_optimizer([weight], OptimizerConfig(name=name, learning_rate=1.0))
        for _ in range(1000):
            weight.grad = (weight.detach() - target).sign() * 1.0 + (weight.detach() - target)
            optimizer.step()
        assert (weight.detach() - target).abs().max() < 0.5, name
        assert 1e-2 < optimizer.distance < 6.0, name  # the largest coordinate has 3 to go


# --- curvature estimates ----------------------------------------------------------------------------------------------


def test_hutchinson_is_unbiased() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs, labels = torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,))
    names, values = zip(*model.named_parameters(), strict=True)

    def loss_of(*parameters: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), inputs)
        return nn.functional.cross_entropy(outputs, labels)

    hessian = torch.autograd.functional.hessian(loss_of, values)
    exact = torch.cat(
        [
            block[i].reshape(value.numel(), -1).diagonal()
            for i, (block, value) in enumerate(zip(hessian, values, strict=True))
        ]
    )
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [
            torch.cat([part.flatten() for part in hutchinson_diagonal(loss_of(*values), list(values), generator)])
            for _ in range(500)
        ]
    )
    error = (draws.mean(0) - exact).abs() / (draws.std(0) / math.sqrt(len(draws)) + 1e-12)
    assert error.max() < 4.5


def test_gauss_newton_by_drawn_labels_is_unbiased() -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(16, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    probabilities = (inputs @ weight.detach().T).softmax(-1)
    exact = torch.einsum("nv,ni->vi", probabilities * (1 - probabilities), inputs**2) / 16
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([gauss_newton_diagonal(inputs @ weight.T, [weight], generator)[0] for _ in range(1500)])
    error = (draws.mean(0) - exact).abs() / (draws.std(0) / math.sqrt(1500))
    assert error.max() < 4.5
    assert (draws >= 0).all()
