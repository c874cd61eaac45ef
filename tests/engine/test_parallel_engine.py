"""Engines on two processes (gloo, loopback), started as a user starts them, give the tokens of one."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch

from wootz.core import ConfigError, EngineConfig, UnavailableError
from wootz.engine import Engine, EngineClient, SamplingParams
from wootz.engine.parallel import rows
from wootz.engine.parallel.model import ParallelModel
from wootz.engine.scheduler import Chunk
from wootz.models import Decoder, load, read_config
from wootz.models.saving import save

CONFIG = {"block_size": 4, "max_running": 6, "max_step_tokens": 40, "threads": 1, "device": "cpu", "max_model_len": 80}
NUM_BLOCKS = 24
"""So few that sequences are preempted."""
PARALLEL = {
    "tensor": {"tensor_parallel": 2},
    "pipeline": {"pipeline_parallel": 2},
    "sequence": {"sequence_parallel": 2},
    "experts": {"tensor_parallel": 2, "expert_parallel": True},
}


@pytest.fixture(scope="module")
def moe_folder(tiny_folder, tmp_path_factory) -> Path:
    """Four experts and a shared one, with the tiny model's tokenizer."""
    torch.manual_seed(3)
    like = dict(load(tiny_folder).config.raw)
    moe = read_config(
        like
        | {"model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    ).build()
    assert isinstance(moe, Decoder)
    for parameter in moe.parameters():
        parameter.data *= 6
    folder = tmp_path_factory.mktemp("models") / "moe"
    save(moe, folder, beside=tiny_folder)
    return folder


@contextmanager
def parallel_engine(path: Path, **config):
    engine = Engine(path, config=EngineConfig(**(CONFIG | config)))
    assert isinstance(engine.model, ParallelModel)
    try:
        yield engine
    finally:
        engine.model.close()


def answers(engine: Engine) -> list[list[list[int]]]:
    """Of requests that share prefixes, fork, are cut into chunks and preempted."""
    random.seed(4)
    stems = [[random.randrange(3, 90) for _ in range(length)] for length in (30, 60)]
    prompts = [stem[: random.randrange(1, len(stem))] + [random.randrange(3, 90)] * 3 for stem in stems * 3]
    params = [
        SamplingParams(temperature=index % 3 / 2, seed=index, n=1 + index % 2, max_tokens=12, ignore_eos=True)
        for index in range(len(prompts))
    ]
    return [[choice.token_ids for choice in answer.choices] for answer in engine.generate(prompts, params)]


QUICK = ("tensor",)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in PARALLEL]
)
def test_two_processes_give_the_tokens_of_one(kind, tiny_folder, moe_folder, monkeypatch):
    monkeypatch.setattr(rows, "LEAST_MICRO_BATCH", 4)
    folder = moe_folder if kind == "experts" else tiny_folder
    alone = Engine(folder, config=EngineConfig(cache_bytes=2**25, **CONFIG))
    expected = answers(alone)
    block_bytes = sum(layer.nbytes for layer in alone.runner.cache.layers) // alone.pool.num_blocks
    # As many blocks in all as one process would preempt with; of two ranks each has half of a block, or all of it.
    cache_bytes = NUM_BLOCKS * block_bytes // (1 if kind == "sequence" else 2)
    with parallel_engine(folder, cache_bytes=cache_bytes, **PARALLEL[kind]) as engine:
        assert engine.pool.num_blocks == NUM_BLOCKS
        assert answers(engine) == expected
        assert engine.scheduler.num_preemptions > 0
        assert engine.scheduler.num_cached_tokens > 0
        engine.scheduler.check_integrity()
        report = engine.model.report()
        assert report.passes == engine.num_steps
        if kind == "pipeline":
            assert report.micro_batches > report.passes
            assert len(report.busy_seconds) == 2
            assert 0 < report.bubble < 1
        if kind == "tensor":
            group = engine.model.share.tensor_group
            assert group.num_sums == report.passes * (2 * 2 + 1)
        own_bytes = sum(layer.nbytes for layer in engine.runner.cache.layers)
        assert own_bytes == NUM_BLOCKS * block_bytes // (1 if kind == "sequence" else 2)


def server(model: Path, socket: Path, config: str, **environ: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "wootz.engine.server", "--name", "tiny", "--path", str(model)]
    command += ["--socket", str(socket), "--config", config]
    return subprocess.Popen(command, env=os.environ | environ, stderr=subprocess.PIPE)


async def ready(client: EngineClient) -> None:
    async with asyncio.timeout(150):
        while not client.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_dead_rank_ends_the_engine_and_its_requests_may_be_tried_again(tiny_folder, tmp_path):
    config = '{"tensor_parallel": 2, "threads": 1, "cache_bytes": 4000000, "device": "cpu"}'
    process = server(tiny_folder, tmp_path / "s", config)
    client = EngineClient(tmp_path / "s")
    client.start()
    try:
        await ready(client)
        assert client.hello is not None
        assert client.hello.num_parameters == load(tiny_folder).num_parameters
        (rank,) = psutil.Process(process.pid).children()
        stream = client.generate(text="the engine", params=SamplingParams(max_tokens=1900, ignore_eos=True))
        await anext(stream)
        rank.kill()
        with pytest.raises(UnavailableError) as error:
            async for _ in stream:
                pass
        assert (error.value.code, error.value.retryable) == ("engine_restarted", True)
        assert await asyncio.to_thread(process.wait, 20) == 70
    finally:
        await client.close()
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


@pytest.mark.slow
async def test_ranks_that_torchrun_started_meet(tiny_folder, tmp_path):
    """Every rank has the same command; the first listens. When that ends, the others do."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo"}
    config = '{"pipeline_parallel": 2, "threads": 1, "cache_bytes": 4000000, "device": "cpu"}'
    ranks = [server(tiny_folder, tmp_path / "s", config, RANK=str(rank), **environ) for rank in (0, 1)]
    client = EngineClient(tmp_path / "s")
    client.start()
    try:
        await ready(client)
        events = [event async for event in client.generate(text="the engine", params=SamplingParams(max_tokens=4))]
        assert events[-1].completion_tokens == 4
        ranks[0].kill()
        assert await asyncio.to_thread(ranks[1].wait, 20) != 0
    finally:
        await client.close()
        for rank in ranks:
            with suppress(ProcessLookupError):
                rank.kill()
            rank.wait()


def test_what_cannot_be_divided_is_refused_before_anything_is_served(tiny_folder):
    with pytest.raises(ConfigError, match="4 attention heads do not divide among 3 ranks"):
        Engine(tiny_folder, config=EngineConfig(tensor_parallel=3))
    with pytest.raises(ConfigError, match="from a path"):
        Engine(load(tiny_folder), config=EngineConfig(tensor_parallel=2))
    for wrong in ({"sequence_parallel": 2, "tensor_parallel": 2}, {"expert_parallel": True}):
        with pytest.raises(ValueError, match="parallel"):
            EngineConfig.model_validate(wrong)


def test_chunks_are_cut_at_the_edges_of_rows():
    chunks = [Chunk(None, 5, 3), Chunk(None, 0, 10), Chunk(None, 7, 1)]  # pyright: ignore
    pieces = [rows.cut_chunks(chunks, slice(start, start + 5)) for start in (0, 5, 10)]
    assert [[(piece.start, piece.num_tokens) for piece in own] for own in pieces] == [
        [(5, 3), (0, 2)],
        [(2, 5)],
        [(7, 3), (7, 1)],
    ]
    assert rows.micro_batches(100, 3) == [33, 66, 100]
    assert rows.micro_batches(40, 3) == [40]
    assert [rows.own_rows(5, rank, 4) for rank in range(4)] == [slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 5)]
