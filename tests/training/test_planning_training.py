"""Plans of runs: the arithmetic of the field where it is right, and laws that are found again in data made by them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wootz.core import BadRequestError
from wootz.models.planning.accounting import on_meta
from wootz.models.planning.hardware import device
from wootz.models.planning.presets import preset
from wootz.training.parallel import Layout
from wootz.training.planning.budget import budget, data_warnings, effective_tokens
from wootz.training.planning.layouts import Training, candidates
from wootz.training.planning.memory import activation_bytes, state_bytes
from wootz.training.planning.scaling_laws import CHINCHILLA, EPOCH, Law, Run, fit_law, rule_of_thumb
from wootz.training.planning.traffic import step_traffic
from wootz.training.studies.moe_scaling import moe_scaling_study
from wootz.training.studies.positions import Size
from wootz.training.studies.scouts import extrapolate, runs_of

GB = 1e9


def test_seventy_billion_on_sixty_four_devices() -> None:
    """TP 8 x PP 2 x DP 4. What is often left out is the master copy, and that the upper estimate does not fit."""
    sharded = state_bytes(70e9, tensor=8, pipeline=2, shards=4, zero=1, gradient_bytes=2)
    assert sharded.weights == sharded.gradients == 8.75 * GB
    assert sharded.moments == 8.75 * GB  # divided by all 64
    assert sharded.master == pytest.approx(4.375 * GB)
    assert state_bytes(70e9, tensor=8, pipeline=2, zero=0).master == 17.5 * GB
    without_master = sharded.total - sharded.master
    assert without_master + 30 * GB + 5 * GB == pytest.approx(61.25 * GB)
    assert without_master + 50 * GB + 5 * GB > 80 * GB


def test_zero_stages_divide_what_they_say() -> None:
    stages = [state_bytes(1e9, shards=64, zero=zero, gradient_bytes=2) for zero in (0, 1, 2, 3)]
    assert [stage.total / GB for stage in stages] == pytest.approx([16, 4 + 12 / 64, 2 + 14 / 64, 16 / 64])
    assert state_bytes(70e9).moments == 560 * GB  # eight bytes a parameter
    assert state_bytes(32e9).moments + state_bytes(32e9).master == 384 * GB  # twelve; not 2.7 TB


def test_a_forward_pass_gathers_what_others_have() -> None:
    """Pure FSDP over 64: each rank receives 63/64 of 140 GB in one forward pass, not 2.2 GB times 80 layers."""
    model = on_meta(preset("llama-3-70b"))
    found = step_traffic(model, Layout(shard=64, zero=2), rows=1, length=8, compute_bytes=2)
    assert found["shard", "all_gather"].bytes == pytest.approx(2 * 70.55e9 * 63 / 64, rel=1e-3)
    assert found["shard", "all_gather"].bytes < 140 * GB < 2.2 * 80 * GB


def test_a_llama_sized_run_does_not_add_up_as_told() -> None:
    h100 = device("h100")
    run = budget(70e9, 15e12, h100, 1900, utilisation=0.4)
    assert run.flops == pytest.approx(6.3e24)  # not 2.5e25
    stated = 1900 * 60 / 365.25
    assert stated < 313
    assert run.device_years == pytest.approx(505, rel=0.01)  # what 40 % of the peak would take
    assert budget(70e9, 15e12, h100, 1900, utilisation=0.4 * 505 / stated).days == pytest.approx(60, rel=0.01)


def test_rules_of_thumb_and_optima() -> None:
    assert CHINCHILLA.loss(70e9, 1.4e12) == pytest.approx(1.69 + 406.4 / 70e9**0.34 + 410.7 / 1.4e12**0.28)
    parameters, tokens = rule_of_thumb(6 * 70e9 * 1.4e12, 20)
    assert (parameters, tokens) == pytest.approx((70e9, 1.4e12))
    assert 15e12 / 8e9 == 1875
    for law in (CHINCHILLA, EPOCH):
        for flops in (1e19, 1e21, 1e24):
            parameters, tokens = law.optimum(flops)
            assert 6 * parameters * tokens == pytest.approx(flops)
            around = [law.loss(parameters * f, tokens / f) for f in (0.5, 0.9, 1.1, 2)]
            assert law.loss(parameters, tokens) < min(around)
    assert 18 < EPOCH.optimum(5.76e23)[1] / EPOCH.optimum(5.76e23)[0] < 23


def test_a_model_that_is_used_much_is_smaller_and_trained_longer() -> None:
    loss = CHINCHILLA.loss(*CHINCHILLA.optimum(1e23))
    never = CHINCHILLA.optimum_with_use(loss, 0)
    assert never == pytest.approx(CHINCHILLA.optimum(1e23), rel=1e-3)
    sizes = []
    for used in (1e12, 1e13, 1e14):
        parameters, tokens = CHINCHILLA.optimum_with_use(loss, used)
        assert CHINCHILLA.loss(parameters, tokens) == pytest.approx(loss)
        cost = 6 * parameters * tokens + 2 * parameters * used
        for factor in (0.8, 1.25):
            other = parameters * factor
            assert 6 * other * CHINCHILLA.tokens_for(other, loss) + 2 * other * used > cost
        sizes.append(parameters)
    assert never[0] > sizes[0] > sizes[1] > sizes[2]
    with pytest.raises(BadRequestError, match=r"ends at 1\.69"):
        CHINCHILLA.optimum_with_use(1.6, 0)


def made_runs(law: Law, noise: float, seed: int = 0) -> list[Run]:
    generator = np.random.default_rng(seed)
    return [
        Run(n, d, law.loss(n, d) * math.exp(noise * generator.standard_normal()))
        for n in np.logspace(6, 9, 7)
        for d in np.logspace(8, 11, 7)
    ]


def test_a_law_is_found_in_runs_that_follow_it() -> None:
    law = Law(1.7, 400.0, 600.0, 0.35, 0.31)
    exact = fit_law(made_runs(law, 0.0), resamples=3)
    assert vars(exact.law) == pytest.approx(vars(law), rel=1e-2)
    noisy = fit_law(made_runs(law, 0.003), resamples=20)
    for figure in ("E", "alpha", "beta"):
        assert getattr(noisy.law, figure) == pytest.approx(getattr(law, figure), rel=0.1)
    truth = law.loss(1e10, 1e12)
    forecast, low, high = noisy.forecast(1e10, 1e12)
    assert forecast == pytest.approx(truth, rel=0.02)
    assert low <= forecast <= high < low + 0.1
    assert fit_law(made_runs(law, 0.01), resamples=0).residual > 2 * noisy.residual


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(BadRequestError, match="do not determine"):
        fit_law([Run(1e6, 1e8, 3.0)] * 10)


def test_repeated_text_is_worth_less_and_less() -> None:
    assert effective_tokens(1e9, 5e8) == 5e8
    assert effective_tokens(1e9, 1e9) == 1e9
    four = effective_tokens(1e9, 4e9)
    assert 0.9 * 4e9 < four < 4e9  # up to four epochs nearly as good as new
    assert effective_tokens(1e9, 4e10) < 0.4 * 4e10
    assert effective_tokens(1e9, 1e13) == pytest.approx(16.39e9, rel=1e-3)
    assert data_warnings(1e9, 2e9) == []
    (four_epochs,) = data_warnings(4e9, 1e9)
    assert four_epochs.startswith("4.0 epochs")
    assert "look for more" not in four_epochs
    assert "look for more text" in data_warnings(9e9, 1e9)[0]
    assert "than there are" in data_warnings(1e9, 1e15)[0]
    assert data_warnings(3e11, 3e11, wall=2e11)


def test_kept_activations_are_what_autograd_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = {"model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 160,
           "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-5,
           "max_position_embeddings": 512}  # fmt: skip
    from wootz import kernels
    from wootz.kernels import training as training_kernels
    from wootz.models import Decoder, PackedContext, read_config

    model = read_config(raw).build()
    assert isinstance(model, Decoder)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    tokens = 256

    def measure() -> int:
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(x: torch.Tensor) -> torch.Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            model(torch.zeros(tokens, dtype=torch.int64), torch.arange(tokens), PackedContext([tokens]))
        return sum(storage.nbytes() for storage in kept.values())

    fused = measure()
    monkeypatch.setattr(training_kernels, "serves", lambda *tensors: False)
    measured = measure()
    planned = activation_bytes(model, tokens, bytes_per_number=4)
    norms = 7 * tokens * 64 * 4  # on a CPU each also keeps what it normalised
    assert measured == pytest.approx(planned + norms, rel=0.05)
    full = activation_bytes(model, tokens, bytes_per_number=4, checkpointing="full")
    assert full < planned / 2
    if kernels.AVAILABLE:  # what is between a gated MLP's products is made again from one of them
        assert full < fused < 0.8 * measured


def test_layouts_keep_tensor_parallelism_inside_a_machine() -> None:
    model, h100 = on_meta(preset("llama-3-70b")), device("h100")
    found = candidates(model, h100, 64, Training(batch_tokens=4 * 2**20, length=8192))
    assert all(candidate.layout.num_ranks == 64 for candidate in found)
    assert all(candidate.layout.tensor <= 8 for candidate in found)
    best = found[0]
    assert best.fits
    assert best.memory_bytes < 82e9
    fitting = [candidate.step_seconds for candidate in found if candidate.fits]
    assert fitting == sorted(fitting)
    assert not all(candidate.fits for candidate in found)
    # The bubble is the formula's.
    for candidate in found:
        p, m = candidate.layout.pipeline, candidate.micro_batches
        assert candidate.bubble == pytest.approx((p - 1) / (m + p - 1))
    small = candidates(on_meta(preset("qwen3-0.6b")), h100, 8, Training(batch_tokens=2**19, length=4096))
    assert small[0].layout.tensor == small[0].layout.pipeline == 1  # a small model is sharded, and no more
    with pytest.raises(BadRequestError, match="no layout"):
        candidates(model, h100, 64, Training(batch_tokens=8192 + 1, length=8192))


def test_scouts_are_read_as_runs() -> None:
    law = Law(1.0, 20.0, 60.0, 0.4, 0.35)
    size = {"width": 32, "layers": 2, "heads": 4, "length": 64, "batch_size": 16, "steps": 100}
    report = {"settings": size, "curves": {f"width {width}": {} for width in (16, 24, 32, 48)}}
    for curve in report["curves"].values():
        curve |= {str(tokens): {"mean": 0.0} for tokens in (10_000, 40_000, 160_000, 640_000)}
    runs = [Run(run.parameters, run.tokens, law.loss(run.parameters, run.tokens)) for run in runs_of(report)]
    assert len({run.parameters for run in runs}) == 4
    found = extrapolate(runs, resamples=2)
    assert found.fit.num_runs == 9  # neither of the largest size nor of the greatest length
    assert found.target == max(runs, key=lambda run: (run.parameters, run.tokens))
    assert abs(found.error) < 0.01


def test_moe_scaling_has_its_axes() -> None:
    study = moe_scaling_study(experts=(1, 4), grains=("whole experts", "of half the size"),
                              size=Size(width=16, layers=1, length=32, batch_size=2, steps=2))  # fmt: skip
    whole, halves = (study.run(variant, 0) for variant in study.variants)
    # One cost per token: what there is to choose from grows, however it is cut.
    (dense, sparse), (_, finer) = map(list, (whole, halves))
    assert float(dense) == 1
    assert float(sparse) > 1.5
    assert float(finer) == pytest.approx(float(sparse), rel=0.1)
