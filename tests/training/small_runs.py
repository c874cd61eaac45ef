"""Runs so small that they can be killed and repeated: a two-layer model on counted batches, in forked processes."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimisers import it when first made: here once, rather than in every process that is forked
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from wootz.data.batch import Batch
from wootz.models import Decoder, read_config
from wootz.training.checkpoints import Checkpoints
from wootz.training.trainer import Callback, Step, Trainer, TrainerConfig, rank, world_size

RAW = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
    "rope_theta": 1e4,
}


class CountedBatches:
    """The global batch of a step is made from the step's number, and split by rank."""

    def __init__(self, rows: int = 4, length: int = 16) -> None:
        self.rows, self.length, self.step = rows, length, 0

    def __next__(self) -> Batch:
        generator = torch.Generator().manual_seed(self.step)
        self.step += 1
        rows = torch.randint(8, (self.rows, self.length + 1), generator=generator).cumsum(1) % RAW["vocab_size"]
        return Batch.of(rows[rank() :: world_size()])

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def small_model(**settings: Any) -> Decoder:
    torch.manual_seed(0)
    model = read_config(RAW | settings).build()
    assert isinstance(model, Decoder)
    return model


def small_trainer(
    *callbacks: Callback, steps: int = 20, model: Decoder | None = None, batches: Any = None, **settings: Any
) -> Trainer:
    model = model or small_model()
    if world_size() > 1:
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    config = TrainerConfig(steps=steps, **settings)
    return Trainer(
        model, optimizer, lambda step: 1 / (1 + step), batches or CountedBatches(), config, callbacks=callbacks
    )


class Notes(Callback):
    """Keeps what was told, and the losses in a file that another process may read."""

    def __init__(self, file: Path | None = None, pause: float = 0.0) -> None:
        self.steps: list[Step] = []
        self.file, self.pause = file, pause

    def after_step(self, trainer: Trainer, step: Step) -> None:
        self.steps.append(step)
        if self.file and rank() == 0:
            with self.file.open("a") as file:
                file.write(f"{step.number} {step.loss!r}\n")
            time.sleep(self.pause)

    @property
    def losses(self) -> list[float]:
        return [step.loss for step in self.steps]


def whole_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    whole = {name: getattr(p, "full_tensor", lambda p=p: p)() for name, p in trainer.model.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in whole.items()}


def to_the_end(folder: Path, steps: int, pause: float) -> None:
    """One process's part of a run that takes up where the folder stands and leaves its weights there."""
    checkpoints = Checkpoints(folder / "checkpoints", every=3)
    trainer = small_trainer(checkpoints, Notes(folder / "losses", pause), steps=steps)
    checkpoints.restore(trainer)
    trainer.run()
    weights = whole_weights(trainer)
    if rank() == 0:
        torch.save(weights, folder / "weights.pt")


def start(ranks: int, work: Callable[..., None], *arguments: Any) -> list[Any]:
    """``work(*arguments)`` in forked processes that know each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_ranked, args=(n, ranks, port, work, arguments)) for n in range(ranks)]
    for process in processes:
        process.start()
    return processes


def _ranked(number: int, ranks: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=number, world_size=ranks)
    work(*arguments)
    if ranks > 1:
        dist.destroy_process_group()


def join(processes: list[Any]) -> list[int]:
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def with_kills(ranks: int, folder: Path, steps: int, kills: int, seed: int) -> None:
    """The same run, killed with SIGKILL at random moments and started again, until it is through."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(kills):
        processes = start(ranks, to_the_end, folder, steps, 0.01)
        wanted = _lines(folder) + chance.randint(1, 6)
        delay = chance.random() * 0.03
        while _lines(folder) < wanted and processes[0].is_alive():
            time.sleep(0.002)
        time.sleep(delay)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        join(processes)
    assert join(start(ranks, to_the_end, folder, steps, 0.0)) == [0] * ranks


def _lines(folder: Path) -> int:
    file = folder / "losses"
    return len(file.read_text().splitlines()) if file.exists() else 0
