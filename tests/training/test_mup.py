"""muP: its rules are those of its authors' package, activations keep their size, and what was forgotten shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wootz.core import BadRequestError
from wootz.models import Decoder
from wootz.training.mup import Mup, apply_mup, fold_mup
from wootz.training.studies.mup import GROWING, SMALL, at_width, best_rates, coordinates, transfer_study
from wootz.training.studies.positions import build

WIDTHS = (32, 64, 128)


def fresh(width: int, **settings: object) -> Decoder:
    return build(replace(SMALL, width=width), tie_word_embeddings=False, **settings)


@pytest.mark.slow  # the package is slow to import
def test_rates_are_those_of_the_authors_package() -> None:
    # Its wheel asks for torchvision, which no pinned torch of ours has beside it: pip install --no-deps mup==1.0.0
    authors = pytest.importorskip("mup", reason="mup is not installed")

    model, base, delta = fresh(128), fresh(32), fresh(64)
    authors.set_base_shapes(model, base, delta=delta, rescale_params=False)
    theirs = {}
    for group in authors.MuAdam(model.parameters(), lr=1.0).param_groups:
        theirs |= {id(parameter): group["lr"] for parameter in group["params"]}
    ours = apply_mup(fresh(128), base)
    assert ours.lr_scales == {name: theirs[id(parameter)] for name, parameter in model.named_parameters()}
    assert ours.lr_scales["layers.0.mixer.qkv.weight"] == 1 / 4
    assert ours.lr_scales["head.weight"] == ours.lr_scales["embedding.weight"] == 1
    assert ours.logit_scale == 1 / 4 == 1 / model.head.weight.infshape.width_mult()  # pyright: ignore


def test_initial_sizes_follow_the_table() -> None:
    torch.manual_seed(0)
    base, wide = fresh(64), fresh(512)
    apply_mup(wide, base)
    for name, expected in {
        "embedding": 1.0,
        "head": 1.0,
        "layers.0.mixer.qkv": 8**-0.5,
        "layers.1.ffn.down": 8**-0.5,
    }.items():
        ratio = wide.get_parameter(f"{name}.weight").std() / base.get_parameter(f"{name}.weight").std()
        assert ratio.item() == pytest.approx(expected, rel=0.05), name
    # Heads are eight times as wide: scores by 1 / d.
    assert wide.layers[0].mixer.scale == pytest.approx(base.layers[0].mixer.scale / 8)  # pyright: ignore


def test_the_base_model_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    model = fresh(32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mup = apply_mup(model, fresh(32))
    assert set(mup.lr_scales.values()) == {1.0}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(BadRequestError, match="another make"):
        apply_mup(fresh(32), build(replace(SMALL, width=32, layers=3)))


def test_groups_decay_as_fast_as_the_base_model() -> None:
    model, mup = at_width(128, mup=True)
    assert mup is not None
    groups = mup.groups(model, weight_decay=0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for group in groups:
        if group["weight_decay"]:
            assert group["lr_scale"] * group["weight_decay"] == pytest.approx(0.1)
        else:
            assert all(parameter.ndim == 1 for parameter in group["params"])


def test_a_folded_model_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    model, mup = at_width(128, mup=True)
    assert mup is not None
    tokens = torch.arange(20)
    before = model.logits(tokens).detach()
    fold_mup(model, mup)
    assert model.config.logit_scale == 1
    plain = fresh(128)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain.logits(tokens).detach(), before)


@pytest.fixture(scope="module")
def exponents() -> dict[str, dict[str, float]]:
    return {
        "muP": coordinates(WIDTHS, mup=True, seeds=1).exponents,
        "standard": coordinates(WIDTHS, mup=False, seeds=1).exponents,
    }


def test_activations_keep_their_size_and_grow_without_mup(exponents: dict[str, dict[str, float]]) -> None:
    assert max(exponents["muP"].values()) < GROWING, exponents["muP"]
    stream = [slope for name, slope in exponents["standard"].items() if name in ("layer 0", "layer 1")]
    assert min(stream) > GROWING, exponents["standard"]


def test_the_check_shows_a_layer_that_was_forgotten() -> None:
    def forget(mup: Mup, model: Decoder) -> Mup:
        return replace(mup, lr_scales={n: 1.0 if "ffn.down" in n else scale for n, scale in mup.lr_scales.items()})

    found = coordinates(WIDTHS, mup=True, seeds=1, change=forget)
    assert any("ffn" in name for name in found.growing), found.exponents


def test_best_rates_lie_between_those_tried() -> None:
    curve = {f"{2.0**p:g}": {"mean": 1 + 0.1 * (p + 4.6) ** 2} for p in range(-8, 0)}
    assert best_rates({"one": curve})["one"] == pytest.approx(2**-4.6)


@pytest.mark.slow
@pytest.mark.timeout(900)  # three minutes of a core that is free
def test_the_best_rate_transfers_under_mup_only(tmp_path) -> None:
    from wootz.training.studies.study import run_study

    study = transfer_study(widths=(32, 128), rates=tuple(2.0**p for p in range(-9, -3)), size=replace(SMALL, steps=60))
    best = best_rates(run_study(study, tmp_path, range(2))["curves"])
    moved = {
        name: abs(torch.tensor(best[f"{name} 128"] / best[f"{name} 32"]).log2().item()) for name in ("muP", "standard")
    }
    assert moved["muP"] < moved["standard"], best
