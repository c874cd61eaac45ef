"""Layers join from the top: those that have not are not touched, and a killed run goes on with the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import CountedBatches, small_model, whole_weights

from wootz.core.errors import ConfigError
from wootz.training.checkpoints import Checkpoints
from wootz.training.optimizers import OptimizerConfig, build_optimizer
from wootz.training.recipe import Recipe
from wootz.training.trainer import Callback, Step, Trainer, TrainerConfig
from wootz.training.unfreezing import GradualUnfreezing, groups_from_the_top

STEPS = (0, 4, 8)


class Seen(Callback):
    """Which weights moved in each step, and which have state in the optimiser."""

    def __init__(self, trainer: Trainer) -> None:
        self.moved: list[set[str]] = []
        self.before = whole_weights(trainer)

    def after_step(self, trainer: Trainer, step: Step) -> None:
        now = whole_weights(trainer)
        self.moved.append({name for name, weight in now.items() if not torch.equal(weight, self.before[name])})
        self.before = now
        kept = {name for name, parameter in trainer.model.named_parameters() if parameter in trainer.optimizer.state}
        assert self.moved[-1] <= kept
        assert kept == set.union(*self.moved)


def unfreezing_trainer(steps: int, *callbacks: Callback, optimizer: str = "adamw") -> Trainer:
    model = small_model(num_hidden_layers=3, tie_word_embeddings=False)
    built = build_optimizer(
        model, OptimizerConfig(name=optimizer, learning_rate=1e-2, weight_decay=0.1, layer_decay=0.8)
    )
    watchers = [GradualUnfreezing(model, STEPS), *callbacks]
    return Trainer(model, built, lambda step: 1.0, CountedBatches(), TrainerConfig(steps=steps), callbacks=watchers)


def test_groups_are_layers_from_the_top_with_head_and_embedding_at_the_ends() -> None:
    model = small_model(num_hidden_layers=3, tie_word_embeddings=False)
    parts = [{name.rpartition(".")[0][:8] for name in group} for group in groups_from_the_top(model, 4)]
    assert parts == [{"layers.2", "norm", "head"}, {"layers.1"}, {"layers.0"}, {"embeddin"}]
    assert sum(len(group) for group in groups_from_the_top(model, 2)) == len(list(model.named_parameters()))
    tied = groups_from_the_top(small_model(), 3)
    assert list(tied[-1]) == ["embedding.weight"]
    with pytest.raises(ConfigError, match="4 layers and embeddings do not make 5 groups"):
        groups_from_the_top(model, 5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_what_has_joined_is_moved(optimizer: str) -> None:
    trainer = unfreezing_trainer(12, optimizer=optimizer)
    trainer.callbacks = [*trainer.callbacks, seen := Seen(trainer)]
    names = [set(group) for group in groups_from_the_top(trainer.model, 3)]
    said: list[str] = []
    trainer.report = said.append
    trainer.run()
    for step, moved in enumerate(seen.moved):
        assert moved == set.union(*(group for group, first in zip(names, STEPS, strict=True) if step >= first))
    assert [line.split(":")[0] for line in said] == ["step 0", "step 4", "step 8"]
    assert "100%" in said[-1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop", [4, 6])
def test_it_goes_on_as_if_never_stopped(tmp_path: Path, optimizer: str, stop: int) -> None:
    whole = unfreezing_trainer(11, optimizer=optimizer)
    whole.run()
    for end in (stop, 11):
        checkpoints = Checkpoints(tmp_path, every=100)
        trainer = unfreezing_trainer(end, checkpoints, optimizer=optimizer)
        checkpoints.restore(trainer)
        trainer.run()
    expected = whole_weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in whole_weights(trainer).items())


def test_going_back_to_before_a_group_joined_forgets_its_state(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=3, keep=9)
    trainer = unfreezing_trainer(6, checkpoints)
    trainer.run()
    (tmp_path / "step_6").rename(tmp_path / "gone")
    assert checkpoints.restore(trainer) == 3
    assert {id(parameter) for parameter in trainer.optimizer.state} == {
        id(parameter) for parameter in groups_from_the_top(trainer.model, 3)[0].values()
    }


def test_shares_that_make_no_sense_are_refused() -> None:
    raw = {"name": "x", "depth": 2, "data": {"path": "text"}}
    for shares in ([0.1, 0.2], [0, 0.5, 0.2], [0, 1.0]):
        with pytest.raises(ConfigError, match="rising shares"):
            Recipe.of(raw | {"pretrain": {"unfreeze": shares}}, "test")
    with pytest.raises(ConfigError, match="for one process"):
        Recipe.of(raw | {"pretrain": {"unfreeze": [0, 0.5]}, "mesh": {"data": 2}}, "test")
