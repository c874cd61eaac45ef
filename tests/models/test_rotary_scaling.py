"""Rotary positions and their stretching: equal to transformers' numbers, wherever the text's length comes from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import prove_engine, save_random
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from wootz.models import PackedContext, load, read_config
from wootz.models.families.family import context_length, rope_parameters, rope_scaling
from wootz.models.positions.rotary import Rotary, RotaryConfig, fix_length
from wootz.models.positions.scaling import DynamicNTKScaling, LinearScaling, NTKScaling, YarnScaling
from wootz.models.positions.xpos import XPosDecay

SHORT, LONG = [1.0 + 0.01 * i for i in range(8)], [1.0 + 0.9 * i for i in range(8)]
RULES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "yarn-ramp": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 1024,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "yarn-deepseek": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "yarn-given": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.25,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 512,
    },
    "longrope-given": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 512,
        "factor": 16.0,
        "attention_factor": 1.1,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
}


def theirs(rule: dict[str, Any], length: int | None, theta: float) -> tuple[torch.Tensor, float]:
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": theta, **rule},
    )
    return ROPE_INIT_FUNCTIONS[rule["rope_type"]](config, torch.device("cpu"), seq_len=length)


@pytest.mark.parametrize("theta", [10_000.0, 1_000_000.0])
@pytest.mark.parametrize("length", [100, 513, 4096])
@pytest.mark.parametrize("rule", RULES)
def test_frequencies_equal_transformers(rule: str, length: int, theta: float) -> None:
    expected, factor = theirs(RULES[rule], length, theta)
    raw = {"max_position_embeddings": 2048, "rope_parameters": {"rope_theta": theta, **RULES[rule]}}
    scaling = rope_scaling(rope_parameters(raw))
    assert scaling is not None
    torch.testing.assert_close(RotaryConfig(16, theta, scaling).frequencies(length), expected, rtol=2e-6, atol=0)
    assert scaling.attention_factor == pytest.approx(factor)


def test_lengths_are_found_where_old_phi3_configs_keep_them() -> None:
    raw = {
        "max_position_embeddings": 2048,
        "original_max_position_embeddings": 512,
        "rope_theta": 10_000.0,
        "rope_scaling": {"type": "su", "short_factor": SHORT, "long_factor": LONG},
    }
    scaling = rope_scaling(rope_parameters(raw))
    expected, factor = theirs({**RULES["longrope"]}, 2048, 10_000.0)
    torch.testing.assert_close(RotaryConfig(16, 10_000.0, scaling).frequencies(2048), expected, rtol=2e-6, atol=0)
    assert scaling is not None
    assert scaling.attention_factor == pytest.approx(factor)


SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 0,
}


def model_with(folder: Path, rule: dict[str, Any]) -> tuple[Any, transformers.PreTrainedModel]:
    reference = save_random(folder, transformers.LlamaConfig(**SIZES, rope_parameters={"rope_theta": 10_000.0, **rule}))
    return load(folder), reference


LENGTH_RULES = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 20,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize("rule", LENGTH_RULES)
@pytest.mark.filterwarnings("ignore:a text of 100 tokens")
@torch.inference_mode()
def test_every_document_gets_the_logits_of_transformers_whatever_it_is_packed_with(tmp_path: Path, rule: str) -> None:
    model, reference = model_with(tmp_path, LENGTH_RULES[rule])
    lengths = [12, 100, 19, 64, 70]
    documents = [torch.randint(97, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths]
    expected = []
    for document in documents:
        reference.model.rotary_emb.__init__(reference.config)  # what it has seen before must not matter
        expected.append(reference(document[None]).logits[0])
    positions = torch.cat([torch.arange(length) for length in lengths])
    packed = model.unembed(model(torch.cat(documents), positions, PackedContext(lengths)))
    torch.testing.assert_close(packed, torch.cat(expected), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.logits(documents[1]), expected[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("rule", ["dynamic", "longrope"])
@pytest.mark.filterwarnings("ignore:a text of 100 tokens")
@torch.inference_mode()
def test_a_fixed_length_gives_every_text_the_angles_of_that_length(tmp_path: Path, rule: str) -> None:
    model, reference = model_with(tmp_path, LENGTH_RULES[rule])
    fix_length(model.modules(), 100)
    text = torch.randint(97, (100,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.logits(text), reference(text[None]).logits[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(model.logits(text)[:9], model.logits(text[:9]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ["dynamic", "longrope"])
def test_engine_serves_one_set_of_angles(tmp_path: Path, rule: str) -> None:
    model_with(tmp_path, LENGTH_RULES[rule])
    prove_engine(load(tmp_path, dtype="float64"), num_requests=8)


def test_dynamic_scaling_lengthens_the_context() -> None:
    raw = {"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 4.0}}
    assert context_length(raw) == 256
    assert context_length(raw | {"rope_parameters": {"rope_theta": 1e4}}) == 64


def test_interpolated_positions_are_fractions_of_trained_ones() -> None:
    plain, stretched = Rotary(RotaryConfig(64)), Rotary(RotaryConfig(64, scaling=LinearScaling(2.0)))
    trained = plain(torch.tensor([2048.0]), torch.float32)
    asked = stretched(torch.tensor([4096]), torch.float32)
    assert torch.equal(trained.cos_T1d, asked.cos_T1d)
    half = plain(torch.tensor([0.5]), torch.float32)
    torch.testing.assert_close(half.cos_T1d[0, 0, 0], torch.tensor(math.cos(0.5)))


@pytest.mark.parametrize("scaling", [NTKScaling(8.0), YarnScaling(8.0, 4096)])
def test_the_fastest_pair_is_left_alone_and_the_slowest_interpolated(scaling: Any) -> None:
    plain, scaled = RotaryConfig(128).frequencies(), RotaryConfig(128, scaling=scaling).frequencies()
    assert scaled[0] == plain[0]
    torch.testing.assert_close(scaled[-1], plain[-1] / 8)
    assert (scaled <= plain).all()


def test_ntk_is_a_larger_base() -> None:
    larger = RotaryConfig(128, 10_000.0 * 8 ** (128 / 126)).frequencies()
    torch.testing.assert_close(RotaryConfig(128, scaling=NTKScaling(8.0)).frequencies(), larger, rtol=2e-6, atol=0)
    assert pytest.approx(82_685, abs=1) == 10_000 * 8 ** (128 / 126)


def test_dynamic_scaling_leaves_short_texts_alone() -> None:
    config = RotaryConfig(64, scaling=DynamicNTKScaling(4.0, 100))
    assert torch.equal(config.frequencies(100), RotaryConfig(64).frequencies())
    assert (config.frequencies(101)[1:] < RotaryConfig(64).frequencies()[1:]).all()


@given(m=st.integers(0, 3000), n=st.integers(0, 3000), shift=st.integers(0, 3000), interleaved=st.booleans())
@settings(max_examples=30, deadline=None)
def test_scores_know_distances_only_and_norms_are_kept(m: int, n: int, shift: int, interleaved: bool) -> None:
    rotary = Rotary(RotaryConfig(16, interleaved=interleaved))
    q, k = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(m)).double()

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        return rotary(torch.tensor([position]), torch.float64)(x[None])[0]

    torch.testing.assert_close(turned(q, m).norm(), q.norm(), rtol=1e-5, atol=0)
    near, far = turned(q, m) @ turned(k, n).T, turned(q, m + shift) @ turned(k, n + shift).T
    torch.testing.assert_close(near, far, atol=5e-3, rtol=0)  # angles are float32, whatever the dtype


@pytest.mark.parametrize("interleaved", [False, True])
def test_xpos_scores_know_distances_only_and_decay(interleaved: bool) -> None:
    decay = XPosDecay(num_heads=2, num_kv_heads=1, scale_base=64.0)
    rotary = Rotary(RotaryConfig(16, interleaved=interleaved, decay=decay))
    plain = Rotary(RotaryConfig(16, interleaved=interleaved))
    qk_Rd = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).double()

    def score(rotary: Rotary, m: int, n: int, qk_Rd: torch.Tensor) -> torch.Tensor:
        turned = rotary(torch.tensor([m, n]), torch.float64)(qk_Rd.expand(2, 3, 16))
        return turned[0, :2] @ turned[1, 2]

    torch.testing.assert_close(score(rotary, 90, 20, qk_Rd), score(rotary, 190, 120, qk_Rd), atol=1e-3, rtol=0)
    torch.testing.assert_close(score(rotary, 33, 33, qk_Rd), qk_Rd[:2] @ qk_Rd[2], atol=1e-4, rtol=0)
    one_pair = torch.zeros_like(qk_Rd)
    one_pair[:, 0] = 1.0
    zeta = 0.4 / 1.4
    torch.testing.assert_close(
        score(rotary, 80, 16, one_pair), score(plain, 80, 16, one_pair) * zeta, atol=1e-5, rtol=1e-4
    )


def test_angles_at_large_positions_survive_a_low_precision_model() -> None:
    rotary = Rotary(RotaryConfig(64)).to(torch.bfloat16)
    assert rotary.frequencies.dtype == torch.float32
    rotation = rotary(torch.tensor([100_000, 100_001]), torch.bfloat16)
    assert not torch.equal(rotation.cos_T1d[0, 0, :8], rotation.cos_T1d[1, 0, :8])


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "linear", "factor": 0}, "factor must be a positive number"),
        (
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0], "factor": 2.0},
            "1 factors for 8 pairs",
        ),
        ({"rope_type": "spiral"}, 'rotary scaling "spiral" is not supported'),
    ],
)
def test_bad_scaling_is_refused(rope: dict[str, Any], message: str) -> None:
    raw = {"model_type": "llama", "rms_norm_eps": 1e-6, **SIZES, "rope_parameters": {"rope_theta": 1e4, **rope}}
    with pytest.raises(ValueError, match=message):
        read_config(raw).build()


def test_odd_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="15 is not even"):
        RotaryConfig(15)
