"""What ranks keep: checkpoints that another number of ranks goes on from, and small gradients that are not lost."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_parallel_training import DENSE, EXPERTS, build, global_batch, share_of
from torch import nn
from torch.distributed.tensor import DTensor

from wootz.core import ConfigError
from wootz.data.batch import Batch
from wootz.models import Decoder, read_config
from wootz.training.checkpoints import Checkpoints
from wootz.training.cross_entropy import sliced_language_loss
from wootz.training.fit import language_loss
from wootz.training.parallel import Layout, Mesh, ParallelTrainer, parallelize, take_apart
from wootz.training.parallel.sharding import shard
from wootz.training.parallel.state import load_whole
from wootz.training.trainer import Trainer, TrainerConfig

WIDE = {"dense": DENSE, "experts": EXPERTS}
WRITERS = {"dense": Layout(pipeline=2), "experts": Layout(shard=2, expert=2)}
READERS = {"dense": [Layout(shard=2), Layout(tensor=2)], "experts": [Layout(replicate=2)]}


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.numel()], lr=1e-2, foreach=False)


def steps(layout: Layout, raw: dict[str, Any], number: int, read: Path | None = None, write: Path | None = None):
    parallel = parallelize(build(raw), layout)
    source = SameBatch(share_of(global_batch(), parallel.mesh.reader, layout.num_readers))
    config = TrainerConfig(steps=99, max_grad_norm=1e9)
    trainer = ParallelTrainer(parallel, optimizer_of(parallel.model), lambda step: 1.0, source, config)
    if read is not None:
        assert Checkpoints(read, every=99).restore(trainer) == 2
    losses = [trainer.make_step().loss for _ in range(number)]
    if write is not None:
        checkpoints, said = Checkpoints(write, every=99), []
        checkpoints.save(trainer)
        checkpoints.wait(said.append)
        assert said == []
    return losses


def one_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found: dict[str, Any] = {}
    for name, raw in WIDE.items():
        found[name] = steps(WRITERS[name], raw, 2, write=folder / name)
        for number, layout in enumerate(READERS[name]):
            found[f"{name} {number}"] = steps(layout, raw, 2, read=folder / name)

    # The trainer's own loop.
    for axis in ("shard", "tensor", "pipeline", "context"):
        parallel = parallelize(build(DENSE), Layout(**{axis: 2}), sliced_language_loss)
        source = SameBatch(share_of(global_batch(), parallel.mesh.reader, parallel.mesh.layout.num_readers))
        found[f"trainer, {axis}"] = trained(ParallelTrainer(parallel, optimizer_of(parallel.model), *rest(source)))

    # Two micro-batches on each rank, as one.
    batch = share_of(global_batch(), rank, 2)
    halves = [share_of_rows(batch, rows) for rows in (slice(0, 2), slice(2, 4))]
    parallel = parallelize(build(DENSE), Layout(shard=2))
    found["accumulated"] = parallel.backward(halves)
    found["accumulated norm"] = parallel.clip(1e9)

    # bfloat16 parameters: one large gradient and a thousand tiny ones, summed in either dtype.
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        found[name] = tiny_gradients(rank, dtype)
    parallel = parallelize(build(DENSE), Layout(shard=2, compute_dtype=torch.bfloat16))
    found["bfloat16 loss"] = parallel.backward([batch])
    found["kept in"] = sorted({str(p.dtype) for p in parallel.model.parameters()})
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


class SameBatch:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __next__(self) -> Batch:
        return self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def rest(source: SameBatch) -> tuple[Any, SameBatch, TrainerConfig]:
    return lambda step: 1 / (1 + step), source, TrainerConfig(steps=3, max_grad_norm=0.5)


def trained(trainer: Trainer) -> list[list[float]]:
    steps = [trainer.make_step() for _ in range(3)]
    return [[step.loss, step.grad_norm, step.num_tokens] for step in steps]


def share_of_rows(batch: Any, rows: slice) -> Any:
    return type(batch)(batch.tokens_BT[rows], batch.labels_BT[rows], batch.documents[rows])


def tiny_gradients(rank: int, dtype: torch.dtype) -> float:
    """Rank 0's gradient is 1 everywhere, rank 1's 2 ** -10: bfloat16 has no number between 1 and 1 + 2 ** -7."""
    model = build(DENSE)
    mesh = Mesh(Layout(shard=2, compute_dtype=torch.bfloat16), torch.device("cpu"))
    shard(model, model, mesh, reduce_dtype=dtype)
    hidden = model(torch.zeros(4, dtype=torch.int64), torch.arange(4), _context())
    assert isinstance(model.head.weight, torch.Tensor)
    ((model.head.weight * (1.0 if rank == 0 else 2.0**-10)).sum() + 0 * hidden.sum()).backward()
    gradient = model.head.weight.grad
    assert isinstance(gradient, DTensor)
    return gradient.to_local().float().mean().item()


def _context() -> Any:
    from wootz.models import PackedContext

    return PackedContext([4])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state")
    mp.start_processes(one_rank, (folder,), nprocs=2, start_method="fork")
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def alone(raw: dict[str, Any], number: int, model: Decoder | None = None) -> tuple[list[float], Decoder]:
    model = model or build(raw)
    take_apart(model)
    optimizer, losses = optimizer_of(model), []
    for _ in range(number):
        loss = language_loss(model, global_batch())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model


@pytest.mark.slow
def test_another_layout_goes_on_from_a_checkpoint(folder: Path, ranks: list[dict[str, Any]]) -> None:
    """Stages to shards and to shares of heads, shared-out experts to copies, and any of it to one process."""
    for name, raw in WIDE.items():
        losses, _ = alone(raw, 4)
        for found in ranks:
            assert found[name] == pytest.approx(losses[:2], abs=1e-4)
            for number in range(len(READERS[name])):
                assert found[f"{name} {number}"] == pytest.approx(losses[2:], abs=1e-4)
        model = build(raw)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert language_loss(load_whole(folder / name / "step_2", model), global_batch()).item() == pytest.approx(
            losses[2], abs=1e-4
        )
        assert dict(model.named_parameters()).keys() == dict(build(raw).named_parameters()).keys()


@pytest.mark.slow
def test_the_trainers_loop_is_that_of_one_process(ranks: list[dict[str, Any]]) -> None:
    model = build(DENSE)
    alone = trained(Trainer(model, optimizer_of(model), *rest(SameBatch(global_batch()))))
    for found in ranks:
        for axis in ("shard", "tensor", "pipeline", "context"):
            for ours, theirs in zip(found[f"trainer, {axis}"], alone, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-4), axis


@pytest.mark.slow
def test_micro_batches_add_up(ranks: list[dict[str, Any]]) -> None:
    model = build(DENSE)
    loss = language_loss(model, global_batch())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    for found in ranks:
        assert found["accumulated"] == pytest.approx(loss.item(), abs=1e-5)
        assert found["accumulated norm"] == pytest.approx(norm, rel=1e-5)


def test_small_gradients_survive_the_sum_in_float32_and_not_in_bfloat16(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["float32"] == 1 + 2**-10
        assert found["bfloat16"] == 1
        assert found["kept in"] == ["torch.float32"]
    assert ranks[0]["bfloat16 loss"] == pytest.approx(language_loss(build(DENSE), global_batch()).item(), abs=0.05)


@pytest.mark.parametrize(
    ("raw", "layout", "words"),
    [
        (DENSE, {"shard": 3, "expert": 2}, "does not divide"),
        (DENSE | {"tie_word_embeddings": True}, {"pipeline": 2}, "tied head"),
        (DENSE, {"pipeline": 8}, "do not make 8 stages"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(raw: dict[str, Any], layout: dict[str, int], words: str) -> None:
    from wootz.training.parallel.pipeline import Stage

    model = read_config(raw).build()
    assert isinstance(model, Decoder)
    with pytest.raises(ConfigError, match=words):
        Stage(model, 0, Layout(**layout).pipeline, None)
