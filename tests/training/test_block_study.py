"""The studies of blocks: what is compared is equal in all but one thing, and what diverges counts as nothing learnt."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from wootz.training.studies import blocks
from wootz.training.studies.blocks import SHALLOW, block_studies, feed_forward_study, norm_study
from wootz.training.studies.positions import Size, build
from wootz.training.studies.study import run_study

TINY = Size(width=24, layers=2, heads=2, length=16, batch_size=4, steps=6)


@pytest.fixture(autouse=True)
def one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def test_gated_and_plain_parts_are_equally_large() -> None:
    sizes = {kind: build(SHALLOW, ffn=kind).num_parameters for kind in ("swiglu", "gelu", "geglu")}
    assert len(set(sizes.values())) == 1


def test_norms_are_where_a_variant_says_and_only_it_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def keep(model, batches, config) -> None:
        seen.append((model.config.layers[0].norms, config.share_at(0) == 1, config.learning_rate))

    monkeypatch.setattr(blocks, "fit", keep)
    study = norm_study(size=TINY, rates=(0.01, 0.02))
    for variant in study.variants:
        assert list(study.run(variant, 0)) == ["0.01", "0.02"]
    expected = [("pre", True), ("post", True), ("pre", False), ("post", False)]
    assert seen == [(*kind, rate) for kind in expected for rate in (0.01, 0.02)]


def test_what_diverges_has_learnt_nothing() -> None:
    curve = norm_study(size=TINY, rates=(1e-3, 1e30)).run("pre-norm", 0)
    assert curve["1e+30"] == 8.0 > curve["0.001"]


def test_same_seed_same_figures_and_a_report(tmp_path: Path) -> None:
    study = feed_forward_study(size=TINY, every=3)
    report = run_study(study, tmp_path, range(2))
    assert list(report["curves"]) == ["swiglu", "gelu"]
    assert list(report["curves"]["gelu"]) == ["3", "6"]
    assert (tmp_path / "plot.png").exists()
    assert study.run("gelu", 0) == study.run("gelu", 0) != study.run("gelu", 1)
    assert study.run("swiglu", 0)["6"] < math.log2(256)


def test_steps_are_those_asked_for() -> None:
    norms, feed_forward = block_studies(steps=40)
    assert norms.settings["steps"] == feed_forward.settings["steps"] == 40
    assert feed_forward.settings["every"] == 10
