"""Counts equal transformers'; costs equal the arithmetic written out."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers

from wootz.core.errors import BadRequestError, NotFoundError
from wootz.models.planning.accounting import cache_cost, count_parameters, on_meta, token_flops
from wootz.models.planning.advisor import Needs, advise
from wootz.models.planning.hardware import device
from wootz.models.planning.presets import preset, presets
from wootz.models.planning.roofline import Workload, experts_read, plan
from wootz.models.planning.tensor_parallel import NODE_LATENCY, sweet_spot, tensor_costs

SIBLINGS = {"llama-2-7b", "llama-2-70b", "llama-3-8b", "qwen3-8b", "qwen3-32b", "qwen3-235b-a22b"}
SIBLINGS |= {"gemma-3-1b", "gpt-oss-120b", "jamba-1.5-large"}
"""Of a family of which another size is counted too."""


@cache
def shape_of(name: str):
    return on_meta(preset(name))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SIBLINGS else ()) for name in presets()]
)
def test_parameters_equal_transformers(name: str) -> None:
    raw = preset(name)
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw))
    count = count_parameters(shape_of(name))
    assert count.total == reference.num_parameters() == sum(count.by_part.values())
    assert count.active <= count.total


def test_known_counts() -> None:
    assert count_parameters(shape_of("llama-3-70b")).total == 70_553_706_496
    mixtral = count_parameters(shape_of("mixtral-8x7b"))
    assert (round(mixtral.total / 1e9, 2), round(mixtral.active / 1e9, 2)) == (46.70, 12.88)
    deepseek = count_parameters(shape_of("deepseek-v3"))
    assert 670e9 < deepseek.total < 672e9
    assert 36e9 < deepseek.active < 38.5e9


def test_cache_of_a_70b_model_by_kind_of_attention() -> None:
    shape = preset("llama-2-70b")
    per_token = {kv: cache_cost(on_meta(shape | {"num_key_value_heads": kv})).bytes_per_token for kv in (64, 8, 1)}
    assert per_token == {64: 2_621_440, 8: 327_680, 1: 40_960}
    assert cache_cost(on_meta(shape)).bytes_at(32_768) == 10 * 2**30


def test_a_latent_cache_is_counted_once_per_token() -> None:
    cost = cache_cost(shape_of("deepseek-v3"))
    assert cost.bytes_per_token == 61 * (512 + 64) * 2


def test_a_window_bounds_the_cache() -> None:
    cost = cache_cost(shape_of("mistral-7b"))
    assert cost.bytes_at(4096) == cost.bytes_at(100_000) == 4096 * 131_072


def test_a_state_does_not_grow() -> None:
    cost = cache_cost(shape_of("mamba-2.8b"))
    assert cost.bytes_per_token == 0
    assert cost.bytes_at(1) == cost.bytes_at(10**6) == 64 * 5120 * (16 + 3) * 4


def test_flops_of_a_token_by_hand() -> None:
    """Llama-3-70B at 32K: the weights' two per parameter but the embedding, and 4 per looked-at number and head."""
    flops = token_flops(shape_of("llama-3-70b"), 32_768)
    assert flops.weights == 2 * (70_553_706_496 - 128_256 * 8192)
    assert flops.attention == 80 * 4 * 32_768 * 64 * 128
    assert round(flops.total / 1e9) == 225


def test_the_floor_is_weights_over_bandwidth() -> None:
    h100 = device("h100")
    made = plan(shape_of("llama-3-70b"), h100, Workload(context=1, weights="fp8"))
    alone = (70_553_706_496 - 128_256 * 8192 + 327_680) / 3.35e12
    assert made.fit is not None
    assert made.read_seconds == pytest.approx(alone / made.fit.tensor, rel=1e-6)
    assert made.bound == "memory"
    large = plan(shape_of("llama-3-70b"), h100, Workload(context=128, batch=2048, weights="bf16"))
    assert large.bound == "compute"


def test_experts_are_read_as_often_as_chosen() -> None:
    count = count_parameters(shape_of("mixtral-8x7b"))
    assert experts_read(count, 1) == pytest.approx(count.multiplied)
    everything = count.total - (count.active - count.multiplied)
    assert experts_read(count, 200) == pytest.approx(everything, rel=1e-6)


def test_memory_decides_how_many_devices() -> None:
    model = shape_of("llama-3-70b")
    one = plan(model, device("h100"), Workload(context=8192, weights="int4"))
    many = plan(model, device("h100"), Workload(context=8192, batch=64))
    assert one.fit is not None
    assert many.fit is not None
    assert one.fit.devices == 1
    assert many.weight_bytes + many.cache_bytes <= 0.9 * 80e9 * many.fit.devices
    assert plan(model, device("l4"), Workload(context=8192), most_devices=2).fit is None


@pytest.mark.parametrize(
    ("needs", "choice"),
    [
        (Needs(), "dense"),
        (Needs(context=500_000, low_latency=True), "hybrid"),
        (Needs(memory_gb=3), "small dense"),
        (Needs(low_cost=True, devices=4), "mixture of experts"),
        (Needs(memory_gb=24, low_cost=True), "dense, 4-bit"),
        (Needs(reasoning=True), "dense, trained to think"),
    ],
)
def test_advice_follows_the_rules_and_shows_numbers(needs: Needs, choice: str) -> None:
    advice = advise(needs)
    assert advice.choice.startswith(choice)
    assert any("GB" in reason for reason in advice.reasons)


def test_what_is_unknown_is_named() -> None:
    with pytest.raises(NotFoundError, match="mixtral-8x7b"):
        preset("mixtral")
    with pytest.raises(NotFoundError, match="h100"):
        device("tpu")
    with pytest.raises(BadRequestError):
        advise(Needs(context=0))


def test_tensor_parallel_costs_by_hand_and_where_they_stop_to_pay() -> None:
    model, h100 = shape_of("llama-3-70b"), device("h100")
    work = Workload(context=2048, batch=4)
    costs = {cost.devices: cost for cost in tensor_costs(model, h100, work)}
    weights = 2 * (70_553_706_496 - 128_256 * 8192)  # the embedding is only looked up in
    cache = 4 * 2048 * 2 * 80 * 8 * 128 * 2
    assert costs[1].seconds == pytest.approx((weights + cache) / 3.35e12)
    stream = 2 * 4 * 8192
    assert costs[8].link_seconds == pytest.approx(2 * 80 * (14 * NODE_LATENCY + 2 * 7 / 8 * stream / 450e9))
    assert costs[8].work_seconds == pytest.approx(costs[1].seconds / 8)
    # Across machines the same sums cost more than the devices save: tensor parallel inside, pipeline across.
    assert costs[16].seconds > costs[8].seconds
    assert sweet_spot(list(costs.values())).devices == 8
    # A small model is done sooner than its sums: fewer devices, or one.
    small = tensor_costs(shape_of("llama-3-8b"), h100, Workload(context=512, batch=1))
    assert sweet_spot(small).devices < 8
    assert all(1 / cost.devices < cost.efficiency + 1e-9 <= 1 + 1e-9 for cost in small[:3])
    # Long prompts are bound by arithmetic, and their sums by the links.
    prefill = {cost.devices: cost for cost in tensor_costs(model, h100, work, tokens_per_sequence=2048)}
    assert prefill[8].work_seconds == pytest.approx(8192 * token_flops(model, 2048).total / (8 * 989e12))
    assert prefill[8].link_seconds > 20 * costs[8].link_seconds


def test_stages_go_across_machines_and_heads_inside_them() -> None:
    fit = plan(shape_of("deepseek-v3"), device("h100"), Workload(context=4096, batch=1)).fit
    assert fit is not None
    assert fit.tensor == 8
    assert fit.pipeline > 1
