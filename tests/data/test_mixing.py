"""Rules that find mixtures: by their published formulas, on losses whose best mixture is known, and on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stores import write_store

from wootz.core.errors import ConfigError
from wootz.data.mixing import DoReMi, OnlineMixing
from wootz.training.mixing import optimise_mixture
from wootz.training.studies.positions import Size

NAMES = ("a", "b", "c")


def test_doremi_is_the_published_update() -> None:
    """Algorithm 1 of the paper in NumPy, float64."""
    random, eta, smoothing = np.random.default_rng(0), 0.7, 0.01
    rule, weights, seen = DoReMi(dict.fromkeys(NAMES, 2.0), eta=eta, smoothing=smoothing), np.full(3, 1 / 3), []
    for _ in range(50):
        excess = random.normal(size=3)
        raised = weights * np.exp(eta * np.maximum(excess, 0))
        weights = (1 - smoothing) * raised / raised.sum() + smoothing / 3
        seen.append(weights)
        assert [*rule.update(dict(zip(NAMES, excess, strict=True))).values()] == pytest.approx(weights, abs=1e-12)
    assert [*rule.mean.values()] == pytest.approx(np.mean(seen, axis=0), abs=1e-12)


def test_doremi_leaves_noise_and_what_is_learned_alone() -> None:
    """Losses fall as power laws of what was read. Noise can't be learned, the easy source is known at once; in the
    hard one the proxy is behind the reference."""
    floor = {"a": 5.0, "b": 0.1, "c": 1.0}  # noise, easy, hard
    slope = {"a": 0.0, "b": 0.1, "c": 4.0}

    def loss(name: str, read: float) -> float:
        return floor[name] + slope[name] * (1 + read) ** -0.5

    reference = {name: loss(name, 1000 / 3) for name in NAMES}
    rule, read = DoReMi(dict.fromkeys(NAMES, 1.0)), dict.fromkeys(NAMES, 0.0)
    for _ in range(1000):
        weights = rule.update({name: loss(name, read[name]) - reference[name] for name in NAMES})
        for name in NAMES:
            read[name] += weights[name]
    assert rule.mean["c"] > rule.mean["b"] > rule.mean["a"]
    assert rule.mean["c"] > 0.5
    assert rule.mean["a"] < 0.1


def test_online_mixing_is_the_published_bandit_and_resumes() -> None:
    random, memory = np.random.default_rng(1), 0.8
    rule, rewards, weights = OnlineMixing(dict.fromkeys(NAMES, 1.0), memory=memory), np.zeros(3), np.full(3, 1 / 3)
    for step in range(1, 60):
        losses = random.random(3) + 1
        rewards = memory * rewards + (1 - memory) * losses / weights
        before = 1 / 3 if step == 1 else min(1 / 3, np.sqrt(np.log(3) / (3 * (step - 1))))
        after = min(1 / 3, np.sqrt(np.log(3) / (3 * step)))
        liked = np.exp(before * rewards)
        weights = (1 - 3 * after) * liked / liked.sum() + after
        assert [*rule.update(dict(zip(NAMES, losses, strict=True))).values()] == pytest.approx(weights, abs=1e-12)
        resumed = OnlineMixing(dict.fromkeys(NAMES, 1.0), memory=memory)
        resumed.load_state_dict(json.loads(json.dumps(rule.state_dict())))
        rule = resumed


@pytest.mark.parametrize(("method", "preferred"), [("doremi", "constant"), ("online", "noise")])
def test_tiny_models_find_mixtures(tmp_path: Path, method: str, preferred: str) -> None:
    """Constant text can be learned, noise can't: DoReMi reads what the proxy is behind in, the bandit what is bad."""
    random = np.random.default_rng(0)
    stores = {
        name: write_store(tmp_path / name, documents, vocab_size=32, tokens_per_shard=9999)
        for name, documents in {"constant": [[7] * 40] * 40, "noise": random.integers(0, 32, (40, 40))}.items()
    }
    size = Size(width=16, layers=1, heads=2, length=32, batch_size=4, steps=20)
    found = optimise_mixture(stores, method=method, size=size)  # type: ignore[arg-type]
    assert sum(found.weights.values()) == pytest.approx(1)
    assert len(found.trajectory) == 20
    assert max(found.weights, key=found.weights.__getitem__) == preferred
    assert found.losses["noise"] > found.losses["constant"]
    with pytest.raises(ConfigError, match="two sources"):
        optimise_mixture({"noise": stores["noise"]})
