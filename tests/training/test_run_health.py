"""The doctor names what ails a run; monitors measure what they say; advice follows its rules."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wootz.core.errors import BadRequestError, ConfigError, NotFoundError
from wootz.training import monitors
from wootz.training.advice import check_rate, choose, co_changes
from wootz.training.optimizers import ALGORITHMS, OptimizerConfig, build_optimizer
from wootz.training.optimizers.build import set_rate
from wootz.training.presets import PRESETS, preset
from wootz.training.schedules import ScheduleConfig, build_schedule
from wootz.training.triage import REMEDIES, diagnose, read_metrics


def records(losses: list[float], **others: list[float]) -> list[dict[str, float]]:
    named = {"loss": losses, **others}
    return [{"step": step, **{name: values[step] for name, values in named.items()}} for step in range(len(losses))]


FALLING = [2 + 4 * 0.95**step for step in range(100)]


# --- the doctor -------------------------------------------------------------------------------------------------------


def test_a_healthy_run_has_no_symptoms() -> None:
    assert diagnose(records(FALLING, grad_norm=[1.0 + 0.1 * (step % 5) for step in range(100)])) == []


@pytest.mark.parametrize(
    ("symptom", "losses", "others"),
    [
        ("diverged", [*FALLING[:60], *[math.nan] * 40], {}),
        ("diverged", [*FALLING[:60], *[3 + 0.5 * step for step in range(40)]], {}),
        (
            "spikes",
            FALLING,
            {"grad_norm": [50.0 if step in (40, 70) else 1 + 0.05 * (step % 3) for step in range(100)]},
        ),
        ("oscillates", [3 + (-1) ** step for step in range(100)], {}),
        ("oscillates", FALLING, {"update_ratio": [0.05] * 100}),
        ("slow", [5 - 1e-4 * step for step in range(100)], {}),
        ("slow", FALLING, {"update_ratio": [1e-6] * 100}),
        ("overfits", FALLING, {"eval_loss": [3 + abs(step - 30) / 30 for step in range(100)]}),
    ],
)
def test_each_symptom_is_named_with_its_remedies_in_order(symptom: str, losses: list[float], others: dict) -> None:
    found = diagnose(records(losses, **others))
    assert [finding.symptom for finding in found] == [symptom]
    assert found[0].remedies == REMEDIES[symptom]
    assert any(character.isdigit() or "nan" in found[0].evidence for character in found[0].evidence)


def test_remedies_for_a_loss_that_is_no_number_begin_with_a_tenth_of_the_rate() -> None:
    first, second, third, *_ = REMEDIES["diverged"]
    assert "by 10" in first
    assert "warmup" in second
    assert "clip" in third


def test_the_doctor_knows_a_small_model_whose_rate_was_raised_too_far() -> None:
    """Instability provoked on purpose at a hundredth of the cost: the same network, healthy and not, by its rate."""

    def run(rate: float) -> list[str]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        optimizer = build_optimizer(model, OptimizerConfig(name="sgd", learning_rate=rate))
        generator, logged = torch.Generator().manual_seed(0), []
        for step in range(100):
            inputs = torch.randn(128, 8, generator=generator)
            loss = (model(inputs) - inputs.square().sum(1, keepdim=True).sqrt()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            before = monitors.snapshot(model.named_parameters())
            norm = monitors.gradient_norm(model.parameters())
            optimizer.step()
            ratio = monitors.median_ratio(monitors.update_ratios(before, model.named_parameters()))
            logged.append({"step": step, "loss": loss.item(), "grad_norm": norm, "update_ratio": ratio})
        return [finding.symptom for finding in diagnose(logged)]

    assert run(0.02) == []
    assert run(3.0)[0] == "diverged"


def test_the_doctor_reads_a_runs_folder(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records(FALLING))))
    assert diagnose(read_metrics(tmp_path)) == []
    with pytest.raises(NotFoundError, match="no metrics"):
        read_metrics(tmp_path / "nowhere")
    (tmp_path / "metrics.jsonl").write_text("loss 3.0")
    with pytest.raises(ConfigError, match="not a record"):
        read_metrics(tmp_path)
    with pytest.raises(ConfigError, match="too few"):
        diagnose(records(FALLING[:5]))


# --- monitors ---------------------------------------------------------------------------------------------------------


def test_norms_and_ratios_are_pytorchs() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    model(torch.randn(3, 5)).square().sum().backward()
    assert monitors.gradient_norm(model.parameters()) == pytest.approx(
        nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    )
    before = monitors.snapshot(model.named_parameters())
    with torch.no_grad():
        model.weight.mul_(1.001)
    assert monitors.update_ratios(before, model.named_parameters()) == pytest.approx({"weight": 1e-3}, rel=1e-3)


def test_a_spike_is_told_from_noise_and_does_not_hide_the_next() -> None:
    is_spike = monitors.SpikeDetector()
    generator = torch.Generator().manual_seed(0)
    values = torch.exp(0.2 * torch.randn(500, generator=generator)).tolist()
    for place in (300, 301, 400):
        values[place] = 15.0
    assert [step for step, value in enumerate(values) if is_spike(value)] == [300, 301, 400]
    assert is_spike(math.nan)


def test_the_noise_scale_is_that_of_the_gradients_it_was_measured_on() -> None:
    generator = torch.Generator().manual_seed(0)
    signal, deviation = torch.full((50,), 0.1), 1.0
    squares = {
        batch: (signal + deviation * torch.randn(2000, 50, generator=generator) / batch**0.5)
        .square()
        .sum(1)
        .mean()
        .item()
        for batch in (4, 64)
    }
    noise = monitors.gradient_noise(squares[4], 4, squares[64], 64)
    assert noise.noise == pytest.approx(50, rel=0.05)
    assert noise.scale == pytest.approx(50 / 0.5, rel=0.2)


# --- advice -----------------------------------------------------------------------------------------------------------


def test_a_rate_for_adamw_is_too_high_for_lion() -> None:
    assert check_rate("adamw", 3e-4).verdict == "usual"
    found = check_rate("lion", 3e-4)
    assert found.verdict == "high"
    assert "looks like a rate for AdamW" in found.message
    assert check_rate("momentum", 1e-3).verdict == "low"
    with pytest.raises(ConfigError, match="no optimiser"):
        check_rate("nadam", 1e-3)


@given(name=st.sampled_from(sorted(ALGORITHMS)), rate=st.floats(1e-8, 1e3))
def test_the_verdict_is_where_the_rate_lies(name: str, rate: float) -> None:
    low, high = ALGORITHMS[name].rates
    assert check_rate(name, rate).verdict == ("low" if rate < low else "high" if rate > high else "usual")


def test_what_changes_with_the_batch() -> None:
    for name, factor in (("momentum", 8.0), ("adamw", 8**0.5)):
        changes = {change.what: change.factor for change in co_changes(name, batch=8)}
        assert changes["learning rate"] == pytest.approx(factor)
        assert changes["weight decay"] == pytest.approx(1 / factor)  # so that rate * decay stays
        assert changes["steps"] == 1 / 8
    assert "weight decay" not in {change.what for change in co_changes("adamw", batch=8, decay_mode="independent")}
    (rate, decay) = co_changes("momentum", momentum=(0.0, 0.9))
    assert (rate.factor, decay.factor) == (pytest.approx(0.1), pytest.approx(10))
    assert [change.what for change in co_changes("sgd", rate=2.0)] == ["weight decay"]
    with pytest.raises(BadRequestError):
        co_changes("sgd", batch=0)


def test_the_choice_is_an_optimiser_that_there_is_and_a_rate_that_is_usual() -> None:
    for situation in ("simple", "vision", "llm", "memory-bound", "unknown-length", "wall-clock", "fine-tune"):
        choice = choose(situation)
        assert choice.optimizer in ALGORITHMS
        build_schedule(ScheduleConfig(name=choice.schedule), 100)
        if situation != "fine-tune":
            assert {check_rate(choice.optimizer, rate).verdict for rate in choice.learning_rate} == {"usual"}
    with pytest.raises(BadRequestError, match="no advice"):
        choose("cooking")


def test_presets_are_the_papers_figures_and_can_be_built() -> None:
    model = nn.Linear(3, 3)
    for one in PRESETS.values():
        optimizer = build_optimizer(model, one.optimizer)
        schedule = build_schedule(one.schedule_for(4e6), 100_000)
        set_rate(optimizer, one.optimizer.learning_rate * schedule(99_999))
    llama = preset("llama-7b")
    schedule = build_schedule(llama.schedule_for(4e6), 250_000)
    assert llama.optimizer.learning_rate * schedule(1999) == pytest.approx(3e-4)
    assert llama.optimizer.learning_rate * schedule(250_000) == pytest.approx(3e-5)
    gpt3 = preset("gpt-3-175b").schedule_for(3.2e6)
    assert gpt3.warmup == round(375e6 / 3.2e6)
