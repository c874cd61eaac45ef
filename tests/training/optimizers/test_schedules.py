"""Schedules are their closed forms and PyTorch's schedulers, hold at their edges, and can be gone on with."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wootz.core.errors import ConfigError
from wootz.training.schedules import (
    EXTENDABLE,
    NAMES,
    ScheduleConfig,
    branched,
    build_schedule,
    extended,
    last_stable_step,
    power_knee,
)


def schedule(name: str, total: int, **settings: object) -> list[float]:
    multiplier = build_schedule(ScheduleConfig(name=name, **settings), total)  # type: ignore[arg-type]
    return [multiplier(step) for step in range(total)]


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_warmup_begins_with_a_step_and_ends_at_the_peak() -> None:
    assert schedule("constant", 10, warmup=4) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]


def test_cosine_is_its_formula() -> None:
    found = schedule("cosine", 1000, warmup=20, minimum=0.1)
    for step in (20, 100, 510, 999):
        assert found[step] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 20) / 980)))
    assert found[510] == pytest.approx(0.55)


def test_wsd_is_flat_and_reaches_its_minimum_in_the_last_step() -> None:
    found = schedule("wsd", 1000, minimum=0.1)
    assert found[19] == 1.0
    assert set(found[20:900]) == {1.0}
    assert found[900] == pytest.approx(1 - 0.9 * 1 / 100)
    assert found[949] == pytest.approx(0.55)
    assert found[999] == pytest.approx(0.1)
    assert schedule("wsd", 1000, minimum=0.0, shape="1-sqrt")[924] == pytest.approx(1 - math.sqrt(0.25))
    assert schedule("wsd", 1000, minimum=0.0, shape="cosine")[949] == pytest.approx(0.5)


def test_linear_step_and_multistep() -> None:
    assert schedule("linear", 8, warmup=0, minimum=0.0) == [1 - step / 8 for step in range(8)]
    assert schedule("step", 6, warmup=0, every=2, gamma=0.5) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    found = schedule("multistep", 10, warmup=0, milestones=(0.5, 8))
    assert found == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)


def test_inverse_square_root_is_the_transformers() -> None:
    """min(s^-1/2, s W^-3/2) of arXiv 1706.03762, by its value at W."""
    found = schedule("inverse-sqrt", 500, warmup=40)
    theirs = [min(s**-0.5, s * 40**-1.5) * 40**0.5 for s in range(1, 501)]
    assert found == pytest.approx(theirs)


def test_power_is_the_papers_law_below_its_peak() -> None:
    peak, batch, tokens, a, b = 0.02, 128, 1_000_000, 4.0, -0.51
    knee = power_knee(peak, batch, tokens, a, b)
    found = schedule("power", 100_000, warmup=100, knee=knee, exponent=b)
    for step in (200, 10_000, 99_999):
        law = min(peak, batch * a * ((step + 1) * tokens) ** b)
        assert peak * found[step] == pytest.approx(law, rel=0.01)
    assert found[200] == 1.0 > found[99_999]


def theirs(make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_they_are_pytorchs_where_pytorch_has_them() -> None:
    lr = torch.optim.lr_scheduler
    plain = {"warmup": 0}
    assert schedule("cosine", 60, **plain) == pytest.approx(theirs(lambda o: lr.CosineAnnealingLR(o, 60, 0.1), 60))
    assert schedule("linear", 60, **plain) == pytest.approx(theirs(lambda o: lr.LinearLR(o, 1.0, 0.1, 60), 60))
    assert schedule("step", 60, every=25, **plain) == pytest.approx(theirs(lambda o: lr.StepLR(o, 25), 60))
    found = schedule("multistep", 60, milestones=(0.5, 50), **plain)
    assert found == pytest.approx(theirs(lambda o: lr.MultiStepLR(o, [30, 50]), 60))
    found = schedule("one-cycle", 60, minimum=1 / 25e4)
    assert found == pytest.approx(theirs(lambda o: lr.OneCycleLR(o, 1.0, total_steps=60, cycle_momentum=False), 60))
    found = schedule("cyclical", 60, cycle=20)
    assert found == pytest.approx(theirs(lambda o: lr.CyclicLR(o, 0.1, 1.0, 10, cycle_momentum=False), 60))


# --- edges ------------------------------------------------------------------------------------------------------------


@given(
    name=st.sampled_from(NAMES),
    total=st.integers(0, 300),
    warmup=st.floats(0, 0.5),
    cooldown=st.floats(0, 0.4),
    minimum=st.floats(0, 1),
    beyond=st.integers(0, 1000),
)
def test_a_multiplier_is_a_share_of_the_peak_and_stays_put_past_the_end(
    name: str, total: int, warmup: float, cooldown: float, minimum: float, beyond: int
) -> None:
    config = ScheduleConfig(name=name, warmup=warmup, cooldown=cooldown, minimum=minimum)
    multiplier = build_schedule(config, total)
    assert all(0 <= multiplier(step) <= 1 + 1e-9 for step in range(total))
    assert multiplier(total + beyond) == multiplier(total)
    fresh = build_schedule(config, total)  # a resumed run asks from the middle
    assert [fresh(step) for step in range(total // 2, total)] == [multiplier(step) for step in range(total // 2, total)]


@pytest.mark.parametrize("total", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_runs_of_next_to_nothing_divide_by_nothing(name: str, total: int) -> None:
    multiplier = build_schedule(ScheduleConfig(name=name), total)
    assert all(math.isfinite(multiplier(step)) for step in range(5))


def test_a_cosine_that_is_run_on_does_not_rise_again() -> None:
    multiplier = build_schedule(ScheduleConfig(name="cosine", warmup=20), 1000)
    assert {round(multiplier(step), 12) for step in (1000, 1200, 1500)} == {0.1}


def test_courses_without_cycles_never_rise_after_their_warmup() -> None:
    for name in set(NAMES) - {"one-cycle", "cyclical"}:
        found = schedule(name, 400, warmup=0.1, cooldown=0.2)
        assert all(later <= earlier + 1e-12 for earlier, later in pairwise(found[40:])), name
        largest_fall = max(earlier - later for earlier, later in pairwise(found))
        assert largest_fall < 0.05 or name in ("step", "multistep"), name


def test_what_does_not_fit_is_one_error() -> None:
    with pytest.raises(ConfigError, match="80 steps of warmup and 40 of cooldown do not fit into 100"):
        build_schedule(ScheduleConfig(name="wsd", warmup=80, cooldown=40), 100)
    with pytest.raises(ConfigError, match='no schedule "cosin"'):
        build_schedule(ScheduleConfig(name="cosin"), 100)
    with pytest.raises(ConfigError, match="from 0 to 1"):
        build_schedule(ScheduleConfig(minimum=3e-5 * 1e6), 100)
    with pytest.raises(ConfigError, match="no length"):
        build_schedule(ScheduleConfig(warmup=-1), 100)


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXTENDABLE)
def test_an_extended_run_says_the_same_up_to_the_checkpoint(name: str) -> None:
    config = ScheduleConfig(name=name, cooldown=0.1)
    kept = last_stable_step(config, 500)
    assert kept == 450
    longer = build_schedule(extended(config, 500, 1000), 1000)
    first = build_schedule(config, 500)
    assert [longer(step) for step in range(kept)] == [first(step) for step in range(kept)]
    assert longer(899) > longer(999) == pytest.approx(0.1)


@pytest.mark.parametrize("name", EXTENDABLE)
def test_a_branch_cools_down_from_any_stable_step(name: str) -> None:
    config = ScheduleConfig(name=name, cooldown=0.1)
    branch, total = branched(config, 500, at=300, cooldown=50)
    first, cooled = build_schedule(config, 500), build_schedule(branch, total)
    assert total == 350
    assert [cooled(step) for step in range(300)] == [first(step) for step in range(300)]
    assert cooled(300) < cooled(299)
    assert cooled(349) == pytest.approx(0.1)


def test_a_cosine_must_be_run_again() -> None:
    with pytest.raises(ConfigError, match="cosine schedule of 500 steps cannot be extended"):
        extended(ScheduleConfig(name="cosine"), 500, 1000)
    with pytest.raises(ConfigError, match="not stable"):
        branched(ScheduleConfig(name="wsd"), 500, at=480, cooldown=50)
