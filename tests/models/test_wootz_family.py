"""Our own family: every mixer under every position scheme trains, packs, serves and is saved, out of one config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import prove_engine

from wootz.core.errors import ConfigError, UnsupportedError
from wootz.engine import Engine
from wootz.models import Decoder, PackedContext, load, read_config, save
from wootz.models.blocks.moe import MoE
from wootz.models.families.mixers import MIXERS
from wootz.models.families.settings import Settings, read_settings

SMALL = {
    "model_type": "wootz",
    "vocab_size": 41,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "attention": "gqa:2",
    "sliding_window": 6,
    "state_size": 5,
    "sparse_block": 8,
    "sparse_selected": 3,
    "intermediate_size": 24,
    "eos_token_id": 0,
}
ROTARY = ("rope", "rope-interleaved", "xpos")
IN_EMBEDDINGS = ("learned", "sinusoidal", "multiplicative", "floater")
IN_SCORES = ("alibi", "t5", "shaw", "deberta")
ACCEPTED = {
    "A": ("nope", *ROTARY, *IN_EMBEDDINGS, *IN_SCORES),
    "W": ("nope", *ROTARY, *IN_EMBEDDINGS, *IN_SCORES),
    "D": ("nope", *ROTARY, *IN_EMBEDDINGS),
    "L": ("rope", "rope-interleaved"),
    "N": ("nope", "rope", "rope-interleaved", *IN_EMBEDDINGS),
}
"""Layers with a state take no scheme of their own; one in the embeddings is as good as another."""
PAIRS = [(letter, scheme) for letter in MIXERS for scheme in ACCEPTED.get(letter, ("nope", "learned"))]


def small(seed: int = 0, **settings: Any) -> Decoder:
    torch.manual_seed(seed)
    model = read_config(SMALL | settings).build()
    assert isinstance(model, Decoder)
    return model


def moved(model: Decoder) -> Decoder:
    """In float64, with nothing left at zero or one."""
    model.double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize(("letter", "positions"), PAIRS)
def test_packed_documents_are_read_as_each_alone(letter: str, positions: str) -> None:
    model = moved(small(layers=letter, positions=positions))
    lengths = [19, 1, 8, 8]
    tokens = torch.randint(41, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    places = torch.cat([torch.arange(length) for length in lengths])
    packed = model.unembed(model(tokens, places, PackedContext(lengths)))
    alone = torch.cat([model.logits(document) for document in tokens.split(lengths)])
    torch.testing.assert_close(packed, alone, atol=1e-8, rtol=0)
    # Documents of one length are computed side by side, which those above never are.
    places = torch.arange(18).repeat(2)
    side_by_side = model.unembed(model(tokens, places, PackedContext([18, 18])))
    alone = torch.cat([model.logits(document) for document in tokens.split(18)])
    torch.testing.assert_close(side_by_side, alone, atol=1e-8, rtol=0)
    changed = tokens[:18].clone()
    changed[9:] = 40 - changed[9:]
    torch.testing.assert_close(model.logits(changed)[:9], alone[:9], atol=1e-8, rtol=0)  # and nothing looks ahead


@pytest.mark.parametrize("letter", [letter for letter in MIXERS if letter != "N"])
def test_every_mixer_is_served_as_it_was_trained(letter: str) -> None:
    prove_engine(moved(small(layers=letter)), num_requests=4)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": "M Me A- Le", "experts": "4x2+1", "num_hidden_layers": 4},
        {"layers": "ADL", "positions": "rope,nope,rope-interleaved", "num_hidden_layers": 3},
        {"layers": "AW", "qk_norm": True, "softcap": 5.0, "sinks": True, "positions": "rope+t5", "parallel": True},
        {"layers": "IA", "random_features": 16},
        {"layers": "CGr", "num_hidden_layers": 3, "norm_placement": "sandwich", "norm": "layer", "ffn": "rwkv"},
    ],
    ids=["experts", "positions-by-layer", "switches", "performer", "norms"],
)
def test_mixtures_are_served_as_they_were_trained(settings: dict[str, Any]) -> None:
    prove_engine(moved(small(**settings)), num_requests=4)


@torch.inference_mode()
def test_random_features_come_closer_to_softmax_attention_the_more_there_are(tmp_path: Path) -> None:
    """The same weights under attention and under linear attention, read from the same file."""
    attention = small(layers="A", positions="nope", attention="mha", initializer_range=0.12).eval()
    save(attention, tmp_path / "attention")
    tokens = torch.randint(41, (40,), generator=torch.Generator().manual_seed(1))
    exact, errors = attention.logits(tokens), []
    for number in (8, 128, 2048):
        config = json.loads((tmp_path / "attention" / "config.json").read_text())
        config |= {"layers": "I", "random_features": number}
        (tmp_path / "attention" / "config.json").write_text(json.dumps(config))
        performer = load(tmp_path / "attention")
        errors.append((performer.logits(tokens) - exact).square().mean().sqrt().item())
    assert errors[2] < 0.5 * errors[1] < 0.5 * errors[0], errors
    assert errors[2] < 0.1 * exact.std(), errors


@pytest.mark.parametrize(("letter", "positions"), [pair for pair in PAIRS if pair[1] != "nope" or pair[0] in "4C"])
def test_every_mixture_learns(letter: str, positions: str) -> None:
    model = small(layers=letter, positions=positions, initializer_range=0.1)
    tokens = torch.randint(41, (12,), generator=torch.Generator().manual_seed(2)).repeat(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model.logits(tokens)[:-1], tokens[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0], losses
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused


@torch.inference_mode()
def test_a_model_is_saved_and_comes_back(tmp_path: Path) -> None:
    model = small(layers="".join(MIXERS), num_hidden_layers=len(MIXERS), positions="rope", tie_word_embeddings=False)
    save(model.eval(), tmp_path / "model")
    tokens = torch.arange(30) % 41
    torch.testing.assert_close(load(tmp_path / "model").logits(tokens), model.logits(tokens))


def test_what_reads_whole_texts_is_refused_by_the_engine() -> None:
    model = small(layers="AN")
    with pytest.raises(UnsupportedError, match="trained and studied, but not served"):
        Engine(model)


def test_layers_differ_as_the_pattern_says() -> None:
    model = small(layers="R Ae A-", experts="4x1", num_hidden_layers=6, positions="rope,nope")
    layers: list[Any] = list(model.layers)
    assert [type(layer.mixer).__name__ for layer in layers] == ["TimeMix7", "Attention", "Attention"] * 2
    assert [isinstance(layer.ffn, MoE) for layer in layers] == [False, True, False] * 2
    assert [layer.ffn is None for layer in layers] == [False, False, True] * 2
    assert [layer.mixer.rotary is not None for layer in layers if hasattr(layer.mixer, "rotary")] == [
        False,  # layers 1, 2, 4, 5, of which every other has positions
        True,
        True,
        False,
    ]
    assert layers[0].mixer.keep_own is None  # the first RWKV-7 has no earlier one's values to take up
    assert layers[3].mixer.keep_own is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "AX"}, 'layers "AX": no mixer is called X'),
        ({"layers": ""}, "the pattern is empty"),
        ({"layers": "Ae"}, 'needs "experts"'),
        ({"experts": "4x2"}, 'no layer is marked with "e"'),
        ({"layers": "e", "experts": "4x2"}, "no mixer is called e"),
        ({"layers": "Ae", "experts": "four"}, "write ExK"),
        ({"layers": "D", "positions": "alibi"}, "no place for positions that bias scores"),
        ({"layers": "L", "positions": "nope"}, "rope or rope-interleaved positions only"),
        ({"layers": "M", "qk_norm": True}, "qk_norm is for attention"),
        ({"positions": "learned,sinusoidal"}, "two of the position schemes want the embedding"),
        ({"positions": "compass"}, '"compass" are not known'),
        ({"norm_placement": "before"}, 'norm_placement "before" is not known'),
        ({"norm": "batch"}, 'norm "batch" is not known'),
        ({"ffn": "moe"}, 'ffn "moe" is not known'),
        ({"attention": "gqa:3"}, "not a multiple"),
        ({"router_gates": "loud"}, 'router_gates "loud" are not known'),
        ({"num_attention_heads": 64}, "64 heads are too many"),
        ({"layers": "N", "sparse_block": 6}, "multiple of 4"),
    ],
)
def test_what_makes_no_sense_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_a_file_describes_a_model(tmp_path: Path) -> None:
    toml, json = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text('layers = "MA"\nhidden_size = 48\n')
    json.write_text('{"layers": "MA", "hidden_size": 48}')
    assert read_settings(toml) == read_settings(json) == {"layers": "MA", "hidden_size": 48}
    toml.write_text('layer = "MA"\n')
    with pytest.raises(ConfigError, match=r"no setting is called layer; there are .*layers"):
        read_settings(toml)
    json.write_text("layers = 'MA'")
    with pytest.raises(ConfigError, match="not a TOML or JSON file"):
        read_settings(json)
    assert SMALL.keys() <= Settings.__annotations__.keys()
