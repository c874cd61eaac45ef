"""Health figures of a model that many ranks hold are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import RAW, join, small_model, start

from wootz.data.batch import Batch
from wootz.training.guards.health import HealthMonitor
from wootz.training.optimizers import OptimizerConfig, build_optimizer
from wootz.training.optimizers.sharded import ShardedState
from wootz.training.parallel import Layout, ParallelTrainer, parallelize, take_apart
from wootz.training.runs import RunFolder
from wootz.training.trainer import Trainer, TrainerConfig, rank, world_size

LAYOUTS: dict[str, dict[str, int]] = {
    "all cut": {"shard": 2},
    "zero 1": {"shard": 2, "zero": 1},
    "tensor": {"tensor": 2},
}


class Share:
    """One reader's rows of batches that all readers count alike."""

    def __init__(self, reader: int = 0, readers: int = 1) -> None:
        self.rows, self.step = slice(reader * 4 // readers, (reader + 1) * 4 // readers), 0

    def __next__(self) -> Batch:
        generator = torch.Generator().manual_seed(self.step)
        self.step += 1
        return Batch.of((torch.randint(8, (4, 17), generator=generator).cumsum(1) % RAW["vocab_size"])[self.rows])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def watched(folder: Path) -> None:
    for name, layout in LAYOUTS.items() if world_size() > 1 else [("one", {})]:
        run = RunFolder.create(folder / name, {}) if rank() == 0 else RunFolder(folder / name)
        model, how, config = small_model(), OptimizerConfig(learning_rate=1e-2), TrainerConfig(steps=4)
        with torch.no_grad():  # one direction that most words share, so that the alarm is given
            model.embedding.weight.add_(torch.randn(64, 1) @ torch.randn(1, 16) * 5)
        callbacks = [HealthMonitor(run, 64, every=2)]
        lines: list[str] = []
        rest: dict[str, Any] = {"callbacks": callbacks, "report": lines.append}
        if world_size() == 1:
            take_apart(model)
            trainer = Trainer(model, build_optimizer(model, how), lambda step: 1.0, Share(), config, **rest)
        else:
            parallel = parallelize(model, Layout(**layout))  # type: ignore[arg-type]
            mesh = parallel.mesh
            optimizer = ShardedState(model, how, mesh["shard"]) if "zero" in layout else build_optimizer(model, how)
            batches = Share(mesh.reader, mesh.layout.num_readers)
            trainer = ParallelTrainer(parallel, optimizer, lambda step: 1.0, batches, config, **rest)
        trainer.run()
        assert any("embedding collapsed" in line for line in lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("health")
    assert join(start(1, watched, folder)) == [0]
    assert join(start(2, watched, folder)) == [0, 0]
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_figures_of_two_ranks_are_those_of_one_process(folder: Path, layout: str) -> None:
    ours, theirs = (RunFolder(folder / name).rows("health") for name in (layout, "one"))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [1, 3]
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for figure, value in other.items():
            assert one[figure] == pytest.approx(value, rel=1e-4), figure
    assert set(theirs[0]["grad_norms"]) == {"embedding", "layer 0", "layer 1", "norm"}
