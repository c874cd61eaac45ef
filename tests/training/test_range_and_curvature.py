"""The range test finds the edge that theory has and leaves no trace; sharpness is a dense Hessian's eigenvalue."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wootz.core.errors import ConfigError, UnsupportedError
from wootz.training.curvature import (
    SharpnessTracker,
    adam_denominator,
    ceiling,
    hessian_product,
    lanczos,
    power_iteration,
    sharpness,
)
from wootz.training.lab.quadratic import descent_violations, excess_by_batch, overshoot, race, regime
from wootz.training.optimizers import OptimizerConfig, build_optimizer
from wootz.training.range_test import range_test


class Quadratic(nn.Module):
    def __init__(self, *curvatures: float) -> None:
        super().__init__()
        self.register_buffer("curvatures", torch.tensor(curvatures, dtype=torch.float64))
        self.weight = nn.Parameter(torch.ones(len(curvatures), dtype=torch.float64))

    def forward(self, batch: Any = None) -> Tensor:
        return 0.5 * (self.curvatures * self.weight**2).sum()


def sgd(model: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    return build_optimizer(list(model.parameters()), OptimizerConfig(name="sgd", learning_rate=rate))


# --- range test -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", [0.3, 5.0, 200.0])
def test_on_a_quadratic_the_edge_is_two_over_its_curvature(curvature: float) -> None:
    model = Quadratic(*[curvature] * 30)
    draws = torch.randn(200, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1
    found = range_test(
        model,
        sgd(model),
        lambda m, draw: 0.5 * (m.curvatures * (m.weight - draw) ** 2).sum(),  # batches that disagree a little
        draws,
        lowest=1e-3 / curvature,
        highest=1e2 / curvature,
        steps=120,
    )
    assert found.blown_up
    assert found.edge is not None
    assert found.suggested is not None
    assert 2 / curvature * 0.7 < found.edge < 2 / curvature * 1.4
    assert found.suggested == pytest.approx((0.3 * found.edge, found.edge))
    assert found.starts_learning is not None
    assert found.starts_learning < found.edge


class Source:
    """Batches that know where they stand."""

    def __init__(self) -> None:
        self.position = 0

    def __next__(self) -> Tensor:
        self.position += 1
        return torch.randn(8, 4, generator=torch.Generator().manual_seed(self.position))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def test_a_range_test_in_the_middle_of_a_run_changes_nothing() -> None:
    def run(tested: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = build_optimizer(model, OptimizerConfig(name="adamw", learning_rate=0.01))
        source = Source()
        for step in range(12):
            if tested and step == 6:
                found = range_test(model, optimizer, lambda m, b: m(b).square().mean(), source, lowest=1e-4, steps=60)
                assert found.edge is not None
            optimizer.zero_grad()
            model(next(source)).square().mean().backward()
            optimizer.step()
        return [*model.parameters(), *model.buffers()]

    assert all(torch.equal(one, other) for one, other in zip(run(False), run(True), strict=True))


def test_a_loss_that_is_no_number_ends_the_test_and_not_the_run() -> None:
    model = Quadratic(1.0)
    found = range_test(model, sgd(model), lambda m, b: m(b) / (m.weight[0] < 0.9), [None], lowest=1e-3, steps=50)
    assert found.blown_up
    assert math.isinf(found.losses[-1])
    assert model.weight.item() == 1.0


def test_batches_begin_again_and_none_at_all_is_one_error() -> None:
    model = Quadratic(1.0)
    found = range_test(model, sgd(model), lambda m, b: m(b), [1, 2, 3], lowest=1e-3, highest=0.1, steps=20)
    assert len(found.rates) == 20
    assert not found.blown_up
    with pytest.raises(ConfigError, match="ran out of batches"):
        range_test(model, sgd(model), lambda m, b: m(b), [], steps=20)
    with pytest.raises(ConfigError, match="no range"):
        range_test(model, sgd(model), lambda m, b: m(b), [None], lowest=1.0, highest=0.1)


# --- sharpness --------------------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> tuple[nn.Module, Any, np.ndarray]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    inputs, labels = torch.randn(20, 5), torch.randint(3, (20,))
    parameters = dict(model.named_parameters())

    def loss_of() -> Tensor:
        return nn.functional.cross_entropy(model(inputs), labels)

    def at(*values: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, dict(zip(parameters, values, strict=True)), inputs)
        return nn.functional.cross_entropy(outputs, labels)

    blocks = torch.autograd.functional.hessian(at, tuple(parameters.values()))
    sizes = [value.numel() for value in parameters.values()]
    rows = [
        torch.cat([b.reshape(n, m) for b, m in zip(row, sizes, strict=True)], 1)
        for row, n in zip(blocks, sizes, strict=True)
    ]
    dense = torch.cat(rows)
    return model, loss_of, dense.numpy().astype(float)


def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian(network: Any) -> None:
    model, loss_of, dense = network
    exact = np.linalg.eigvalsh(dense)
    parameters = list(model.parameters())
    assert sharpness(loss_of, parameters) == pytest.approx(exact[-1], rel=1e-4)
    product = hessian_product(loss_of, parameters)
    values = lanczos(product, len(dense), generator=torch.Generator().manual_seed(1))
    assert values[0].item() == pytest.approx(exact[0], rel=1e-2)
    largest = max(exact, key=abs)
    found = power_iteration(
        product, len(dense), iterations=500, tolerance=1e-7, generator=torch.Generator().manual_seed(1)
    )
    assert found == pytest.approx(largest, rel=1e-2)


def test_under_adam_sharpness_is_that_of_the_divided_hessian(network: Any) -> None:
    model, loss_of, dense = network
    optimizer = build_optimizer(model, OptimizerConfig(name="adamw", learning_rate=1e-6))
    parameters = list(model.parameters())
    with pytest.raises(UnsupportedError, match="no second moment"):
        sharpness(loss_of, parameters, optimizer)
    loss_of().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters]).numpy().astype(float)
    optimizer.step()
    denominator = adam_denominator(optimizer, parameters).numpy().astype(float)
    assert denominator == pytest.approx(np.abs(gradient) + 1e-8, rel=1e-3)  # after one step, corrected
    exact = np.linalg.eigvals(dense / denominator[:, None]).real.max()
    assert sharpness(loss_of, parameters, optimizer, iterations=60) == pytest.approx(exact, rel=0.01)


def test_beyond_the_ceiling_training_leaves_and_below_it_stays() -> None:
    for name, momentum in (("sgd", 0.0), ("momentum", 0.9)):
        for share, stays in ((0.95, True), (1.05, False)):
            model = Quadratic(4.0)
            rate = share * ceiling(1.0, momentum=momentum) / 4.0
            config = OptimizerConfig(name=name, learning_rate=rate, momentum=momentum)
            optimizer = build_optimizer(list(model.parameters()), config)
            for _ in range(250):
                optimizer.zero_grad()
                model().backward()
                optimizer.step()
            assert (model.weight.abs().item() < 1) == stays, (name, share)
    assert ceiling(0.01, momentum=0.9, adam=True) == pytest.approx(38 / 0.01)


def test_sharpness_rises_to_the_edge_of_stability() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(16, 4)
    targets = torch.sin(2 * inputs).sum(1, keepdim=True)
    model = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))
    optimizer = sgd(model, 0.1)

    def loss_of() -> Tensor:
        return (model(inputs) - targets).square().mean()

    tracker = SharpnessTracker(loss_of, list(model.parameters()), optimizer, iterations=10)
    for step in range(600):
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()
        if step % 75 == 0:
            tracker(step)
    shares = [sharp / limit for sharp, limit in zip(tracker.sharpness, tracker.ceilings, strict=True)]
    assert shares[0] < 0.6
    assert 0.8 < np.mean(shares[-3:]) < 1.2


# --- quadratics -------------------------------------------------------------------------------------------------------


@given(rate=st.floats(0.01, 3), curvature=st.floats(0.1, 3))
def test_regimes_of_gradient_descent_are_what_happens(rate: float, curvature: float) -> None:
    weights = [1.0]
    for _ in range(3):
        weights.append(weights[-1] * (1 - rate * curvature))
    match regime(rate, curvature):
        case "diverges":
            assert abs(weights[3]) > 1
        case "two-cycle":
            assert weights[2] == weights[0] == -weights[1]
        case "alternating":
            assert weights[1] <= 0 <= weights[2] <= 1
        case "monotone":
            assert 1 >= weights[1] >= weights[2] >= 0


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.01, 1.99), seed=st.integers(0, 1000))
def test_the_descent_lemma_holds_below_two_over_smoothness(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    smoothness = torch.linalg.eigvalsh(rows.T @ rows)[-1].item() / 4  # logistic loss: at most X'X / 4

    def loss_of(weight: Tensor) -> Tensor:
        return nn.functional.softplus(rows @ weight).sum()

    start = torch.randn(3, generator=generator, dtype=torch.float64)
    assert descent_violations(loss_of, start, share / smoothness, smoothness, steps=30) == 0
    flattering = 0.02 * smoothness  # a smoothness that the loss does not have promises too much
    assert descent_violations(loss_of, start, 1.9 / smoothness, flattering, steps=30) > 0


def test_a_valley_takes_kappa_steps_and_accelerated_its_root() -> None:
    def slope(name: str) -> float:
        steps = [race(name, kappa).steps for kappa in (10, 200)]
        assert steps[0]
        assert steps[1]
        return math.log(steps[1] / steps[0]) / math.log(20)

    assert slope("sgd") == pytest.approx(1.0, abs=0.05)
    assert slope("momentum") == pytest.approx(0.5, abs=0.1)
    assert slope("nag") == pytest.approx(0.5, abs=0.1)
    assert race("sgd", 10, learning_rate=2.1).steps is None


def test_nesterov_is_quadratically_fast_on_a_convex_problem() -> None:
    """f(w_t) - f* falls as 1 / t^2 with growing momentum (t - 1) / (t + 2), as 1 / t without."""
    curvature = torch.logspace(0, -5, 40, dtype=torch.float64)

    def gap(name: str, steps: int) -> float:
        weight = nn.Parameter(1 / curvature.sqrt())
        optimizer = build_optimizer(
            [weight], OptimizerConfig(name=name, learning_rate=1.0, momentum=0.5 if name == "nag" else 0.0)
        )
        for t in range(1, steps + 1):
            optimizer.param_groups[0]["momentum"] = max(1e-9, (t - 1) / (t + 2)) if name == "nag" else 0.0
            weight.grad = curvature * weight.detach()
            optimizer.step()
        return 0.5 * (curvature * weight.detach() ** 2).sum().item()

    start = 0.5 * (1 / curvature).sum().item()  # |w_0 - w*|^2 / 2
    for steps in (50, 300):
        assert gap("nag", steps) < 4 * start / (steps + 1) ** 2 * 1.05
        assert gap("nag", steps) < gap("sgd", steps)


def test_nesterov_overshoots_less() -> None:
    assert 0 < overshoot("nag") < 0.8 * overshoot("momentum")


def test_gradient_noise_leaves_a_variance_that_falls_with_the_batch() -> None:
    found = excess_by_batch([1, 4, 16], 0.1, 1.0, steps=1200)
    assert found == pytest.approx([0.1 / 1.9 / batch for batch in (1, 4, 16)], rel=0.05)
