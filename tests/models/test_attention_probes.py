"""Probes on models whose answer is known, and on SmolLM2; and launches, counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from wootz.models import load
from wootz.models.attention.streaming import StreamingContext
from wootz.models.blocks.attention import AttentionConfig
from wootz.models.blocks.mlp import MLPConfig
from wootz.models.context import PackedContext
from wootz.models.decoder import Decoder, DecoderConfig, LayerConfig
from wootz.models.instruments import compiled_launches, count_launches, launches_by_layer
from wootz.models.positions.rotary import RotaryConfig
from wootz.models.probes import ablate, attention_sinks, future_leak, massive_activations, permutation_gap

TOKENS = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:24]


def small_model(num_layers: int = 2, **attention) -> Decoder:
    mixer = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, **attention)
    layers = (LayerConfig(mixer=mixer, ffn=MLPConfig(48)),) * num_layers
    torch.manual_seed(0)
    model = DecoderConfig(family="test", vocab_size=40, hidden_size=32, layers=layers).build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


# --- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "a_set", "leaks"),
    [
        ({"causal": False}, True, True),  # without positions and mask, the order is invisible
        ({"causal": True}, False, False),  # a causal mask alone lets tokens count those before them
        ({"causal": False, "rotary": RotaryConfig(8)}, False, True),
        ({"causal": True, "rotary": RotaryConfig(8)}, False, False),
        ({"causal": False, "window": 3}, False, True),
    ],
)
def test_what_makes_order_visible(settings, a_set, leaks):
    model = small_model(**settings)
    permutation = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    gap, leak = permutation_gap(model, TOKENS, permutation), future_leak(model, TOKENS, 13)
    assert (gap < 1e-5) == a_set
    assert gap < 1e-5 or gap > 0.05
    assert (leak > 1e-3) == leaks
    assert leak > 1e-3 or leak == 0


# --- sinks -----------------------------------------------------------------------------------------------------------


def test_a_model_without_preference_has_no_sinks():
    model = small_model()
    with torch.no_grad():
        for layer in model.layers:
            layer.mixer.qkv.weight.zero_()  # all scores are equal
    report = attention_sinks(model, TOKENS, num_first=2)
    assert report.first_mass.shape == (2, 4)
    torch.testing.assert_close(report.first_mass, torch.full((2, 4), report.uniform))
    assert report.uniform == pytest.approx(sum(2 / (t + 1) for t in range(2, 24)) / 22)
    assert report.sinks() == []
    assert report.null_mass.abs().max() < 1e-6


def test_a_learned_sink_takes_what_it_is_given():
    model = small_model(sinks=True)
    with torch.no_grad():
        for layer in model.layers:
            layer.mixer.qkv.weight.zero_()
            layer.mixer.sinks_H.copy_(torch.log(torch.arange(1.0, 5.0)))  # as much as 1 … 4 tokens
    expected = [sum(n / (t + 1 + n) for t in range(1, 24)) / 23 for n in range(1, 5)]
    torch.testing.assert_close(attention_sinks(model, TOKENS).null_mass[1], torch.tensor(expected))


def test_a_planted_sink_is_found_in_its_head():
    model = small_model(1)
    with torch.no_grad():
        model.embedding.weight[:, 0] = 0.5
        model.embedding.weight[TOKENS[0], 0] = 40  # the first token alone has a large feature …
        q, k, _ = model.layers[0].mixer.qkv.weight.view(8, 8, 32).split((4, 2, 2))
        q[2], k[1] = 0, 0
        q[2, :, 0], k[1, :, 0] = 8, 8  # … which this head's keys show, and its queries look for
    assert (0, 2) in attention_sinks(model, TOKENS).sinks(0.9)


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Iterator[Decoder]:
    model = load(smollm2_gguf)
    yield model
    del model


TEXT = torch.tensor([504, 3575, 282, 4649, 314, 28, 504, 260, 284, 253, 2443, 28, 1093, 355, 357, 418] * 2)


def test_smollm2_has_sinks_and_massive_activations_and_needs_them(smollm2):
    report = attention_sinks(smollm2, TEXT)
    assert len(report.sinks()) > 50  # of 270 heads
    massive = massive_activations(smollm2, TEXT)
    assert massive
    assert {it.token for it in massive} == {0}
    assert len({it.feature for it in massive}) < 5  # of 576
    ablation = ablate(smollm2, TEXT, massive, num_random=2)
    rise = ablation.ablated - ablation.loss
    assert rise > 0.5
    assert rise > 20 * max(abs(loss - ablation.loss) for loss in ablation.random)


# --- massive activations ---------------------------------------------------------------------------------------------


def test_a_planted_activation_is_found_and_ablated():
    model = small_model()
    with torch.no_grad():
        model.layers[0].ffn.down.bias = torch.nn.Parameter(torch.zeros(32))
        model.layers[0].ffn.down.bias[7] = 5e4
    found = massive_activations(model, TOKENS)
    assert {(it.layer, it.feature) for it in found} == {(0, 7), (1, 7)}
    assert len(found) == 2 * 24
    assert found[0].value == pytest.approx(5e4, rel=0.01)
    report = ablate(model, TOKENS, [it for it in found if it.layer == 0])
    assert report.loss == pytest.approx(ablate(model, TOKENS, []).ablated)
    assert abs(report.ablated - report.loss) > 2 * max(abs(loss - report.loss) for loss in report.random)
    assert massive_activations(model, TOKENS) == found  # hooks are gone


# --- launches --------------------------------------------------------------------------------------------------------


def test_launches_count_operators_and_not_views():
    x = torch.randn(4, 4)
    counts = count_launches(lambda: (x.view(2, 8).transpose(0, 1) + 1).detach() @ x[:2].flatten()[:2])
    assert counts == {"add": 1, "mv": 1}
    assert count_launches(lambda: x.clone().add_(1)) == {"clone": 1, "add_": 1}


def test_fused_attention_is_one_launch_and_its_parts_are_many():
    model = small_model(rotary=RotaryConfig(8))

    def step():
        model(TOKENS, torch.arange(24), PackedContext([24]))

    with torch.inference_mode():
        fused = launches_by_layer(model.layers, step)
        with sdpa_kernel(SDPBackend.MATH):
            naive = launches_by_layer(model.layers, step)
        inside = count_launches(step)
    assert len(fused) == 2
    assert fused[1]["_scaled_dot_product_flash_attention_for_cpu"] == 1
    assert "_scaled_dot_product_flash_attention_for_cpu" not in naive[1]
    assert naive[1].total() >= fused[1].total() + 5
    assert sum(layer.total() for layer in fused) < inside.total()


@pytest.mark.slow  # compiles C++
@pytest.mark.timeout(600)
def test_a_compiled_layer_launches_its_products_and_what_lies_between_them():
    model = small_model(2, rotary=RotaryConfig(8))

    def step(model):
        return model(TOKENS[:1], torch.arange(1), PackedContext([1]))

    with torch.no_grad():
        launched, compiled = count_launches(lambda: step(model)), compiled_launches(model, step)
    assert compiled["mm"] + compiled["addmm"] == 8  # in each layer those of queries and so on, output, up, down
    assert compiled["_scaled_dot_product_flash_attention_for_cpu"] == 2
    assert compiled.total() < 0.5 * launched.total(), (compiled, launched)


def test_a_decoding_step_launches_the_same_however_much_was_read():
    model = small_model(rotary=RotaryConfig(8))
    context = StreamingContext(model, window=8, slack=1)

    def step(token: int) -> int:
        positions = context.next_positions(1)
        return count_launches(lambda: model(TOKENS[token : token + 1], positions, context)).total()

    with torch.inference_mode():
        launches = [step(token) for token in range(20)]
    assert len(set(launches[1:])) == 1
