"""A rank whose gradients are wrong is named, whether it computes them wrongly or is given them wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import CountedBatches, join, small_model, small_trainer, start, whole_weights

from wootz.training.guards.corruption import CorruptionError, CorruptionGuard, outvoted
from wootz.training.optimizers import OptimizerConfig
from wootz.training.optimizers.sharded import ShardedState
from wootz.training.parallel import Layout, ParallelTrainer, parallelize
from wootz.training.runs import RunFolder
from wootz.training.trainer import Callback, Step, Trainer, TrainerConfig, rank, world_size

WRONG = 1


class WrongBackward(Callback):
    """From a step on, the gradient that reaches one layer is half as large again; what is computed forward is right."""

    def __init__(self, at: int) -> None:
        self.at = at

    def before_step(self, trainer: Trainer) -> None:
        if trainer.step == self.at and rank() == WRONG:
            trainer.model.get_submodule("layers.0.mixer").register_forward_hook(self._larger)

    def _larger(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * 1.5)


class WrongSum(Callback):
    """One bit of one gradient is another on one rank, after all were summed."""

    def __init__(self, at: int) -> None:
        self.at = at

    def before_update(self, trainer: Trainer, step: Step) -> str | None:
        if step.number == self.at and rank() == WRONG:
            gradient = trainer.model.get_parameter("layers.1.ffn.down.weight").grad
            assert gradient is not None
            gradient.view(torch.int32).view(-1)[7] ^= 1
        return None


def replicas(*callbacks: Callback, **layout: Any) -> Trainer:
    parallel = parallelize(small_model(), Layout(**layout))
    config = OptimizerConfig(learning_rate=1e-2)
    if layout.get("zero") == 1:
        optimizer: torch.optim.Optimizer = ShardedState(parallel.model, config, parallel.mesh["shard"])
    else:
        optimizer = torch.optim.AdamW(parallel.model.parameters(), lr=1e-2)
    how = TrainerConfig(steps=8)
    return ParallelTrainer(parallel, optimizer, lambda step: 1.0, CountedBatches(rows=6), how, callbacks=callbacks)


def work(folder: Path) -> None:
    found: dict[str, Any] = {}
    for name, fault, trainer_of in (
        ("sharded", WrongBackward(3), small_trainer),
        ("whole", WrongBackward(3), lambda *all_: replicas(*all_, shard=3, zero=1)),
        ("summed", WrongSum(4), lambda *all_: replicas(*all_, shard=3, zero=1)),
        ("copies", WrongSum(4), lambda *all_: replicas(*all_, replicate=3)),
    ):
        run = RunFolder(folder / f"{name} {rank()}")
        run.path.mkdir()
        guard = CorruptionGuard(every=2, suspect=lambda ranks, run=run: run.suspect(ranks, sure=True))
        trainer = trainer_of(fault, guard)
        try:
            trainer.run()
        except CorruptionError as error:
            found[name] = [trainer.step, error.message, run.take_suspects()]
    (folder / f"{rank()}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("corrupt")
    assert join(start(3, work, folder)) == [0, 0, 0]
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(3)]


@pytest.mark.parametrize("name", ["sharded", "whole"])
def test_a_rank_whose_backward_pass_is_wrong_is_named_with_the_weight(found: list[dict[str, Any]], name: str) -> None:
    for each in found:
        step, message, suspects = each[name]
        assert step == 4  # the first look after it began
        assert message.startswith("rank 1 (gradient of layers.0.mixer.")
        assert "off by" in message
        assert "rank 0" not in message
        assert suspects == [[1], True]


@pytest.mark.parametrize("name", ["summed", "copies"])
def test_a_rank_that_holds_another_bit_than_its_copies_is_named(found: list[dict[str, Any]], name: str) -> None:
    for each in found:
        step, message, suspects = each[name]
        assert step == 4
        assert message == "rank 1 (layers.1.ffn.down.weight) holds other gradients than its copies"
        assert suspects == [[1], True]


def test_of_two_that_differ_both_are_named() -> None:
    same = {("a", "0"): 5, ("b", ""): 6}
    assert outvoted([same, same, same]) == {}
    assert outvoted([same, same | {("b", ""): 7}]) == {0: "b", 1: "b"}
    assert outvoted([same, {("a", "1"): 9, ("b", ""): 6}]) == {}  # shares of other rows are no copies


def unlooked(folder: Path) -> None:
    for name, guards in (("looked", [CorruptionGuard(every=1)]), ("not", [])):
        trainer = replicas(*guards, shard=2, zero=1) if world_size() == 2 else small_trainer(*guards)
        trainer.run()
        torch.save(whole_weights(trainer), folder / f"{name} {rank()}.pt")


def test_a_look_leaves_no_trace_in_the_weights(tmp_path: Path) -> None:
    assert join(start(2, unlooked, tmp_path)) == [0, 0]
    one, other = (torch.load(tmp_path / f"{name} 0.pt") for name in ("looked", "not"))
    assert all(torch.equal(one[name], other[name]) for name in one)
