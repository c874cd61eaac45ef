"""The tools around positions: what they compute is checked against definitions, what they refuse is tried."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from parity import prove_engine
from safetensors.torch import load_file, save_file

from wootz.core.errors import ConfigError, UnsupportedError
from wootz.models import Decoder, load, read_config
from wootz.models.attention.streaming import StreamingContext
from wootz.models.converting import convert
from wootz.models.positions import plots
from wootz.models.positions.extension import ContextExtension, extend, extension_of
from wootz.models.positions.guards import refuse_swap, scheme_of
from wootz.models.positions.inspect import advise, compare_scalings, relative_scores, wavelengths
from wootz.models.positions.layout import convert_layout
from wootz.models.positions.longrope_search import loss_with, search, seed_factors
from wootz.models.positions.rotary import Rotary, RotaryConfig
from wootz.models.positions.scaling import LongRopeScaling, YarnScaling
from wootz.models.saving import save

RAW = {
    "model_type": "wootz",
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "attention": "gqa:2",
    "max_position_embeddings": 64,
}


def built(**settings: object) -> Decoder:
    torch.manual_seed(0)
    model = read_config(RAW | settings).build()
    assert isinstance(model, Decoder)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def test_wavelengths_of_the_textbook_head() -> None:
    found = wavelengths(RotaryConfig(128), 4096, 32768)
    assert [round(found.pairs[index].wavelength, 2) for index in (0, 32)] == [6.28, 628.32]
    assert round(found.pairs[63].wavelength) == 54_410
    assert found.pairs[63].trained_angle == pytest.approx(0.473, abs=1e-3)
    assert found.pairs[63].target_angle == pytest.approx(3.784, abs=1e-3)
    assert found.broken[0] == 46
    assert all(pair.turns >= 1 for pair in found.pairs[:46])
    assert found.broken[-1] == 63


def test_what_scaling_repairs() -> None:
    found = compare_scalings(128, 10_000.0, 4096, 32768)
    assert found["linear"].broken == ()
    assert found["yarn"].attention_factor == pytest.approx(0.1 * math.log(8) + 1)
    assert len(found["ntk"].broken) < len(found["none"].broken)
    assert found["none"].pairs[63].target_angle / 8 == pytest.approx(found["ntk"].pairs[63].target_angle)
    assert found["yarn"].pairs[0].frequency == found["none"].pairs[0].frequency


def test_advice_follows_the_length() -> None:
    assert advise(trained_length=512, longest=512, kind="encoder").scheme == "learned"
    assert advise(trained_length=512, longest=1024, kind="encoder-decoder").scheme == "t5"
    assert advise(trained_length=4096, longest=4096).scaling is None
    assert advise(trained_length=4096, longest=32768, tuning=False).scheme == "alibi"
    assert advise(trained_length=4096, longest=8192).scaling == "linear"
    assert advise(trained_length=4096, longest=32768).scaling == "yarn"
    assert advise(trained_length=4096, longest=2_000_000).scaling == "longrope"


def test_scores_of_equal_vectors_are_those_of_a_turned_pair() -> None:
    config = RotaryConfig(16)
    scores = relative_scores(config, 30)
    ones = torch.ones(30, 1, 16)
    turned = Rotary(config)(torch.arange(30), torch.float32)(ones)[:, 0]
    torch.testing.assert_close(scores, turned @ turned[0] / 16, atol=1e-5, rtol=0)


def test_search_is_never_worse_than_its_seeds_and_finds_what_they_do_not_have() -> None:
    config = RotaryConfig(16)
    seeds = seed_factors(config, 64, 4.0)
    wanted = tuple(1.0 + 3.0 * (i / 7) ** 2 for i in range(8))

    def fitness(factors: tuple[float, ...], unscaled_tokens: int) -> float:
        return sum((a - b) ** 2 for a, b in zip(factors, wanted, strict=True)) + 0.01 * abs(unscaled_tokens - 4)

    result = search(config, 64, 256, fitness, population=24, generations=30, seed=1)
    assert result.loss < 0.5 * min(result.seeds.values())
    assert result.seeds == {name: fitness(factors, 0) for name, factors in seeds.items()}
    assert list(result.history) == sorted(result.history, reverse=True)
    assert list(result.factors) == sorted(result.factors)
    assert result.unscaled_tokens == 4
    assert result.factors[0] >= 1.0
    assert result.factors[-1] <= 4.0
    assert result == search(config, 64, 256, fitness, population=24, generations=30, seed=1)


def test_a_fitness_that_only_likes_a_seed_gets_it_back() -> None:
    config = RotaryConfig(16)
    ntk = seed_factors(config, 64, 4.0)["ntk"]
    found = search(config, 64, 256, lambda f, n: float(f != ntk) + n, population=8, generations=3, parents=2)
    assert (found.factors, found.unscaled_tokens) == (ntk, 0)


def test_search_breeds_on_a_model() -> None:
    """Its result goes into a config, and the model is then what the search measured."""
    model = built()
    text = torch.randint(40, (128,), generator=torch.Generator().manual_seed(0))

    def stretched(factors: tuple[float, ...], unscaled_tokens: int) -> Decoder:
        raw = extend(RAW, "longrope", 2.0, long_factors=factors, unscaled_tokens=unscaled_tokens)
        other = read_config(raw).build()
        other.load_state_dict(model.state_dict())
        assert isinstance(other, Decoder)
        return other.eval()

    @torch.inference_mode()
    def fitness(factors: tuple[float, ...], unscaled_tokens: int) -> float:
        return torch.nn.functional.cross_entropy(stretched(factors, unscaled_tokens).logits(text)[:-1], text[1:]).item()

    result = search(RotaryConfig(8), 64, 128, fitness, population=8, generations=2, parents=4)
    assert result.loss <= min(result.seeds.values())
    assert fitness(result.factors, result.unscaled_tokens) == result.loss
    assert loss_with(model, text[None], 64)(result.factors, 4) == pytest.approx(fitness(result.factors, 4), rel=1e-5)


@pytest.mark.parametrize("method", ["linear", "ntk", "dynamic", "yarn"])
def test_a_stretched_config_is_read_back(method: str) -> None:
    raw = extend(RAW, method, 4.0, working_length=200)  # pyright: ignore[reportArgumentType]
    model = read_config(raw).build()
    assert isinstance(model, Decoder)
    assert model.config.max_position_embeddings == 256
    assert extension_of(raw) == ContextExtension(method, 4.0, 64, 200)  # pyright: ignore[reportArgumentType]
    rotary = next(module for module in model.modules() if isinstance(module, Rotary))
    if method == "yarn":
        assert rotary.config.scaling == YarnScaling(4.0, 64)
    with pytest.raises(ConfigError, match="stretched already"):
        extend(raw, "yarn", 2.0)


def test_longrope_leaves_short_texts_alone() -> None:
    raw = extend(RAW, "longrope", 4.0, long_factors=[2.0] * 4)
    rotary = next(m for m in read_config(raw).build().modules() if isinstance(m, Rotary))
    assert isinstance(rotary.config.scaling, LongRopeScaling)
    assert torch.equal(rotary.config.frequencies(64), RotaryConfig(8).frequencies())
    assert torch.equal(rotary.config.frequencies(65), RotaryConfig(8).frequencies() / 2)


def test_first_tokens_may_keep_the_angles_of_the_training(tmp_path: Path) -> None:
    """The paper's n-hat (arXiv 2402.13753, equation 3), through a config, a file and the engine's cache."""
    short = RAW | {"max_position_embeddings": 16, "eos_token_id": 0}
    raw = extend(short, "longrope", 4.0, long_factors=[1.0, 2.0, 3.0, 4.0], unscaled_tokens=3)
    model = built(**raw)
    rotary = next(m for m in model.modules() if isinstance(m, Rotary))
    rotary.fix_length(64)
    plain, positions = RotaryConfig(8).frequencies(), torch.tensor([0, 2, 3, 60])
    angles = torch.outer(positions.float(), plain)
    angles[2:] /= torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = rotary(positions, torch.float32).cos_T1d[:, 0, :4] / rotary.attention_factor
    torch.testing.assert_close(found, angles.cos())
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    text = torch.randint(40, (50,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.logits(text), model.logits(text))
    prove_engine(again.double(), num_requests=4)
    without = built(**raw | {"rope_parameters": raw["rope_parameters"] | {"unscaled_tokens": 0}})
    assert not torch.allclose(without.logits(text), model.logits(text), atol=1e-4)
    with pytest.raises(UnsupportedError, match="cannot be turned back"):
        StreamingContext(again, window=16)


@pytest.mark.parametrize(
    ("raw", "method", "factor", "message"),
    [
        (RAW | {"positions": "alibi"}, "yarn", 2.0, "only rotary positions"),
        (RAW, "yarn", 1.0, "does not stretch"),
        (RAW, "longrope", 2.0, "needs a factor for each"),
        (RAW | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear", 2.0, 'already .by "linear"'),
    ],
)
def test_what_cannot_be_stretched_is_refused(raw: dict, method: str, factor: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        extend(raw, method, factor)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}])
def test_converted_layouts_compute_the_same_and_unconverted_ones_do_not(settings: dict) -> None:
    half, text = built(**settings), torch.arange(30)
    interleaved = read_config(RAW | settings | {"positions": "rope-interleaved"}).build()
    assert isinstance(interleaved, Decoder)
    interleaved.load_state_dict(half.state_dict())
    assert not torch.allclose(interleaved.logits(text), half.logits(text), atol=1e-2)
    convert_layout(half, interleaved)
    torch.testing.assert_close(interleaved.logits(text), half.logits(text), atol=1e-5, rtol=1e-5)
    back = read_config(RAW | settings).build()
    convert_layout(interleaved, back)
    for name, tensor in half.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_schemes_are_recognised_and_swaps_refused() -> None:
    for words in ("rope", "rope-interleaved", "nope", "alibi", "rope+shaw", "learned", "alibi+sinusoidal", "xpos"):
        assert scheme_of(built(positions=words)) == words
    refuse_swap("rope", "alibi", force=True)
    with pytest.raises(ConfigError, match='trained with positions "rope", and the config says "alibi"'):
        refuse_swap("rope", "alibi")


def test_weights_under_another_scheme_are_refused_unless_forced(tmp_path: Path) -> None:
    """Nothing in the weights of a rotary model would say that a config with ALiBi is not theirs."""
    save(built(), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"positions": "alibi"}))
    with pytest.raises(ConfigError, match='trained with positions "rope", and the config says "alibi"'):
        load(tmp_path / "model")
    with pytest.raises(ConfigError, match='trained with positions "rope"'):
        convert(tmp_path / "model", tmp_path / "converted")
    swapped = load(tmp_path / "model", force_positions=True)
    assert not torch.allclose(swapped.logits(range(20)), built().logits(range(20)), atol=1e-2)


def test_what_another_has_written_is_marked_when_it_is_converted(tmp_path: Path) -> None:
    save(built(), tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})  # as others write
    convert(tmp_path / "model", tmp_path / "converted")
    file = tmp_path / "converted" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"positions": "nope"}))
    with pytest.raises(ConfigError, match='trained with positions "rope", and the config says "nope"'):
        load(tmp_path / "converted")


def test_a_stretched_model_is_no_swap(tmp_path: Path) -> None:
    save(built(), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(extend(json.loads(file.read_text()), "yarn", 2.0)))
    assert load(tmp_path / "model").config.max_position_embeddings == 128


def test_a_text_beyond_what_a_model_was_made_for_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="65 tokens, and this model was made for at most 64"):
        built().logits([1] * 65)


@pytest.mark.slow
def test_pictures_are_drawn(tmp_path: Path) -> None:
    plots.plot_sinusoids(tmp_path / "sinusoids.png")
    plots.plot_rope(tmp_path / "rope.png", RotaryConfig(64))
    plots.plot_alibi(tmp_path / "alibi.png")
    plots.plot_similarity(tmp_path / "learned.png", torch.randn(16, 8))
    assert all(file.stat().st_size > 5000 for file in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 4
