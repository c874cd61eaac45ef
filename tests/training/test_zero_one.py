"""ZeRO-1: whole weights and gradients, a share of the optimiser's state, and the steps of one process."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import CountedBatches, join, small_model, start, whole_weights

from wootz.core.errors import ConfigError
from wootz.data.batch import Batch
from wootz.training.checkpoints import Checkpoints
from wootz.training.estimate import estimate
from wootz.training.optimizers import OptimizerConfig, build_optimizer, evaluation_mode
from wootz.training.optimizers.sharded import ShardedState, bytes_held
from wootz.training.parallel import CountedTraffic, Layout, ParallelTrainer, parallelize, take_apart
from wootz.training.planning.memory import state_bytes
from wootz.training.planning.traffic import step_traffic
from wootz.training.recipe import Recipe
from wootz.training.trainer import Trainer, TrainerConfig, rank, world_size

STEPS = 20
OTHERS = ("schedule-free", "momentum", "prodigy")


def trainer_of(name: str = "adamw", zero: int = 1, **settings: Any) -> Trainer:
    model, config = small_model(), OptimizerConfig(name=name, learning_rate=1.0 if name == "prodigy" else 1e-2)
    how = TrainerConfig(steps=STEPS, max_grad_norm=0.5, **settings)
    schedule = lambda step: 1 / (1 + 0.1 * step)  # noqa: E731
    if world_size() == 1:
        take_apart(model)
        return Trainer(model, build_optimizer(model, config), schedule, CountedBatches(rows=6), how)
    parallel = parallelize(model, Layout(shard=world_size(), zero=zero))  # type: ignore[arg-type]
    mesh = parallel.mesh["shard"]
    optimizer = ShardedState(model, config, mesh) if zero == 1 else build_optimizer(model, config)
    return ParallelTrainer(parallel, optimizer, schedule, CountedBatches(rows=6), how)


def train(trainer: Trainer, steps: int) -> list[float]:
    return [trainer.make_step().loss for _ in range(steps)]


def keep(trainer: Trainer, file: Path) -> None:
    weights = whole_weights(trainer)
    if rank() == 0:
        torch.save(weights, file)


def saved(trainer: Trainer, folder: Path) -> None:
    checkpoints, said = Checkpoints(folder, every=99), list[str]()
    checkpoints.save(trainer)
    checkpoints.wait(said.append)
    assert said == []


def go_on(folder: Path, name: str, read: str, zero: int = 1) -> None:
    trainer = trainer_of(zero=zero)
    assert Checkpoints(folder / read, every=99).restore(trainer) == STEPS // 2
    train(trainer, STEPS // 2)
    keep(trainer, folder / f"{name}.pt")


def one(folder: Path) -> None:
    trainer = trainer_of()
    train(trainer, STEPS // 2)
    saved(trainer, folder / "by 1")
    train(trainer, STEPS // 2)
    keep(trainer, folder / "alone.pt")


def two(folder: Path) -> None:
    trainer = trainer_of()
    train(trainer, STEPS // 2)
    saved(trainer, folder / "by 2")
    train(trainer, STEPS // 2)
    torch.save(whole_weights(trainer), folder / f"rank {rank()}.pt")
    go_on(folder, "again", "by 2")
    by_hand = trainer_of()
    by_hand.model.load_state_dict(trainer.model.state_dict())
    by_hand.optimizer.load_state_dict(deepcopy(trainer.optimizer.state_dict()))
    by_hand.step, by_hand.batches = STEPS // 2, CountedBatches(rows=6)
    trainer.step, trainer.batches = STEPS // 2, CountedBatches(rows=6)
    train(trainer, 2)
    train(by_hand, 2)
    torch.save(whole_weights(trainer), folder / f"two more {rank()}.pt")
    torch.save(whole_weights(by_hand), folder / f"two more by hand {rank()}.pt")
    facts = {"bytes": bytes_held(trainer.optimizer), "accumulated": train(trainer_of(accumulate=2), 5)}
    (folder / f"facts {rank()}.json").write_text(json.dumps(facts | traffic(trainer)))


def more(folder: Path) -> None:
    go_on(folder, "from one process", "by 1")
    go_on(folder, "with all cut", "by 2", zero=3)
    all_cut = trainer_of(zero=3)
    train(all_cut, STEPS // 2)
    saved(all_cut, folder / "by 2 with all cut")
    go_on(folder, "from all cut", "by 2 with all cut")
    others(folder, "two")


def others(folder: Path, where: str) -> None:
    for name in OTHERS:
        averaged(name, folder / f"{name}, {where}.pt")


def averaged(name: str, file: Path) -> None:
    trainer = trainer_of(name)
    train(trainer, STEPS)
    with evaluation_mode(trainer.optimizer):
        keep(trainer, file)


def traffic(trainer: Trainer) -> dict[str, Any]:
    assert isinstance(trainer, ParallelTrainer)
    parallel = trainer.parallel
    batch = Batch.of(torch.arange(3 * 17).view(3, 17) % 64)
    with CountedTraffic(parallel.mesh) as counted:
        parallel.backward([batch])
        trainer.optimizer.step()
    plan = step_traffic(small_model(), parallel.mesh.layout, rows=3, length=16)
    last = 2 * 4 / 2  # the step's loss, four bytes summed over two
    return {
        "counted": {kind: entry.bytes for (_, kind), entry in counted.by_axis.items()},
        "planned": {
            kind: sum(entry.bytes for (_, k), entry in plan.items() if k == kind)
            + (last if kind == "all_reduce" else 0)
            for kind in ("all_reduce", "all_gather")
        },
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    assert join(start(1, one, folder)) == [0]
    assert join(start(2, two, folder)) == [0, 0]
    assert join(start(1, go_on, folder, "on one", "by 2")) == [0]
    return folder


@pytest.fixture(scope="module")
def more_of_it(folder: Path) -> Path:
    assert join(start(3, go_on, folder, "on three", "by 2")) == [0, 0, 0]
    assert join(start(2, more, folder)) == [0, 0]
    assert join(start(1, others, folder, "one")) == [0]
    return folder


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"{name}.pt")


def difference(folder: Path, ours: str, theirs: str = "alone") -> float:
    one, other = weights(folder, ours), weights(folder, theirs)
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_twenty_steps_are_those_of_one_process(folder: Path) -> None:
    assert difference(folder, "rank 0") < 1e-5
    assert difference(folder, "rank 0", "rank 1") == 0


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(folder: Path) -> None:
    assert difference(folder, "again", "rank 0") == 0


def test_state_is_taken_from_another_optimiser(folder: Path) -> None:
    assert difference(folder, "two more by hand 0", "two more 0") == 0


def test_another_number_of_ranks_goes_on(folder: Path) -> None:
    assert difference(folder, "on one") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("how", ["on three", "from one process", "with all cut", "from all cut"])
def test_any_number_of_ranks_and_any_zero_goes_on(more_of_it: Path, how: str) -> None:
    """Three ranks, and rows of eight and sixteen: some shares are larger than others, and some are nothing."""
    assert difference(more_of_it, how) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_optimisers_as_well(more_of_it: Path, name: str) -> None:
    assert difference(more_of_it, f"{name}, two", f"{name}, one") < 1e-5


def test_micro_batches_are_summed_once(folder: Path) -> None:
    facts = [json.loads((folder / f"facts {number}.json").read_text()) for number in (0, 1)]
    alone = train(trainer_of(accumulate=2), 5)
    for found in facts:
        assert found["accumulated"] == pytest.approx(alone, abs=1e-5)


def test_state_takes_what_the_planner_says(folder: Path) -> None:
    num_parameters = small_model().num_parameters
    planned = state_bytes(num_parameters, shards=2, zero=1, weight_bytes=4, master_bytes=0)
    assert (planned.weights, planned.gradients) == (4 * num_parameters, 4 * num_parameters)
    for number in (0, 1):
        facts = json.loads((folder / f"facts {number}.json").read_text())
        assert facts["bytes"] == planned.moments == 8 * num_parameters / 2


def test_the_plan_of_a_recipe_counts_what_is_whole() -> None:
    raw = {"name": "x", "depth": 1, "data": {"path": "x"}}
    for zero, each in ((3, 16 / 4), (1, 8 + 8 / 4)):
        recipe = Recipe.of(raw | {"mesh": {"data": 4, "zero": zero}}, "test")
        assert estimate(recipe).state_bytes == recipe.dial.num_parameters * each


def test_ranks_say_what_the_planner_says(folder: Path) -> None:
    facts = json.loads((folder / "facts 0.json").read_text())
    assert facts["counted"] == pytest.approx(facts["planned"])


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ConfigError, match="ZeRO-1 cannot cut the state of muon"):
        ShardedState(small_model(), OptimizerConfig(name="muon"), None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="zero = 1 goes with shard"):
        Layout(shard=2, tensor=2, zero=1)
    raw = {"name": "x", "depth": 1, "data": {"path": "x"}}
    with pytest.raises(ConfigError, match="zero = 1 goes with mesh"):
        Recipe.of(raw | {"mesh": {"zero": 1, "tensor": 2}}, "test")
