"""Training on two and four processes (gloo): loss and gradients are those of one, and traffic is what the plan says."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from wootz.data.batch import IGNORED, Batch
from wootz.models import Decoder, read_config
from wootz.training.fit import language_loss
from wootz.training.loss_scale import LossScale
from wootz.training.parallel import CountedTraffic, Layout, Parallel, parallelize, put_together, take_apart
from wootz.training.planning.traffic import step_traffic

DENSE = {
    "model_type": "qwen3",  # norms on queries and keys as well
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
EXPERTS = DENSE | {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
EVEN = EXPERTS | {"num_experts_per_tok": 4}
"""Every token goes to every expert, so that the traffic is known exactly."""
CASES: dict[int, dict[str, tuple[dict[str, Any], Layout]]] = {
    2: {
        "shard": (DENSE, Layout(shard=2)),
        "shard, kept gathered": (DENSE, Layout(shard=2, zero=2)),
        "copies": (DENSE, Layout(replicate=2)),
        "tensor": (DENSE, Layout(tensor=2)),
        "tensor, tied": (DENSE | {"tie_word_embeddings": True}, Layout(tensor=2)),
        "context": (DENSE, Layout(context=2)),
        "context, windows": (
            DENSE | {"model_type": "mistral", "sliding_window": 5, "tie_word_embeddings": True},
            Layout(context=2),
        ),
        "gpipe": (DENSE, Layout(pipeline=2, schedule="gpipe")),
        "1f1b": (DENSE, Layout(pipeline=2, micro_batches=4)),
        "experts": (EXPERTS, Layout(shard=2, expert=2)),
        "even experts": (EVEN, Layout(shard=2, expert=2)),
    },
    4: {
        "shard": (DENSE, Layout(shard=4)),
        "copies of shards": (DENSE, Layout(replicate=2, shard=2)),
        "shard, tensor": (DENSE, Layout(shard=2, tensor=2)),
        "shard, pipeline": (DENSE, Layout(shard=2, pipeline=2, micro_batches=2)),
        "four stages": (DENSE, Layout(pipeline=4)),
        "four stages, gpipe": (DENSE, Layout(pipeline=4, schedule="gpipe")),
        "tensor, pipeline": (DENSE, Layout(tensor=2, pipeline=2)),
        "shard, context": (DENSE, Layout(shard=2, context=2)),
        "tensor, context": (DENSE, Layout(tensor=2, context=2)),
        "pipeline, context": (DENSE, Layout(pipeline=2, context=2)),
        "experts, shard": (EXPERTS, Layout(shard=4, expert=2)),
        "four experts": (EVEN, Layout(shard=4, expert=4)),
        "experts, pipeline": (EVEN, Layout(shard=2, expert=2, pipeline=2, micro_batches=2)),
        "experts, context": (EXPERTS, Layout(shard=2, expert=2, context=2)),
        "experts, copies": (EXPERTS, Layout(replicate=2, shard=2, expert=2)),
    },
}
COUNTED = ("experts", "experts, shard", "experts, context", "experts, copies")
"""Whose routing is not even: their traffic among experts is not compared."""


def build(raw: dict[str, Any]) -> Decoder:
    torch.manual_seed(0)
    model = read_config(raw).build()
    assert isinstance(model, Decoder)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def global_batch(masked: bool = True) -> Batch:
    """Eight rows of 16 tokens, every other of two documents. Of the first labels some are not asked, so that readers,
    stages and ranks of a text have unequally many."""
    rows = torch.randint(64, (8, 17), generator=torch.Generator().manual_seed(1))
    batch = Batch.of(rows)
    labels = batch.labels_BT.clone()
    if masked:
        labels[0] = IGNORED
        labels[1, :5] = IGNORED
    return Batch(batch.tokens_BT, labels, tuple((10, 6) if row % 2 else (16,) for row in range(8)))


def share_of(batch: Batch, reader: int, num_readers: int) -> Batch:
    rows = slice(reader * 8 // num_readers, (reader + 1) * 8 // num_readers)
    assert batch.documents is not None
    return Batch(batch.tokens_BT[rows], batch.labels_BT[rows], batch.documents[rows])


def compare(parallel: Parallel, raw: dict[str, Any]) -> dict[str, float]:
    """One step on many ranks and on one: the largest differences."""
    batch = global_batch()
    reader, readers = parallel.mesh.reader, parallel.mesh.layout.num_readers
    scale = LossScale(dynamic=True)
    loss = parallel.backward([share_of(batch, reader, readers)], scale.value)
    scale.unscale(parallel.model.parameters())
    whole = build(raw)
    take_apart(whole)
    theirs = language_loss(whole, batch)
    theirs.backward()
    expected = {name: parameter.grad for name, parameter in whole.named_parameters()}
    worst, seen = 0.0, 0
    for name, parameter in parallel.model.named_parameters():
        if parameter.numel():
            assert isinstance(parameter.grad, DTensor)
            worst = max(worst, (parameter.grad.full_tensor() - expected[name]).abs().max().item())
            seen += 1
    norm = torch.nn.utils.clip_grad_norm_(whole.parameters(), 0.01).item()
    ours = parallel.clip(0.01)
    clipped = 0.0
    for name, parameter in parallel.model.named_parameters():
        if parameter.numel():
            clipped = max(clipped, (parameter.grad.full_tensor() - expected[name]).abs().max().item())  # type: ignore
    return {
        "loss": abs(loss - theirs.item()),
        "gradient": worst,
        "norm": abs(ours / norm - 1),
        "clipped": clipped,
        "parameters": seen,
    }


def traffic(parallel: Parallel, raw: dict[str, Any]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Counted and planned, by axis and kind; axes that coincide are one."""
    mesh, layout = parallel.mesh, parallel.mesh.layout
    own = share_of(global_batch(masked=False), mesh.reader, layout.num_readers)
    parallel.backward([own])  # stages shake hands the first time
    with CountedTraffic(mesh) as counted:
        parallel.backward([own])
    with torch.device("meta"):
        whole = read_config(raw).build()
    assert isinstance(whole, Decoder)
    rows = 8 // layout.num_readers
    plan = step_traffic(whole, layout, rows=rows, length=16, stage=mesh.rank("pipeline"))
    planned: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for (axis, kind), entry in plan.items():
        key = f"{mesh.name_of(mesh.ranks(axis))} {kind}"
        planned[key][0] += entry.calls
        planned[key][1] += entry.bytes
    found = {f"{axis} {kind}": [entry.calls, entry.bytes] for (axis, kind), entry in counted.by_axis.items()}
    # The step's loss, summed over all ranks: four bytes, whatever the layout.
    last = f"{mesh.name_of(tuple(range(layout.num_ranks)))} all_reduce"
    found[last][0] -= 1
    found[last][1] -= 2 * 4 * (layout.num_ranks - 1) / layout.num_ranks
    return {key: value for key, value in found.items() if value[0]}, dict(planned)


def one_rank(rank: int, num_ranks: int, folder: Path, cases: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), num_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks, timeout=timedelta(seconds=60))
    found = {}
    for name in cases:
        raw, layout = CASES[num_ranks][name]
        parallel = parallelize(build(raw), layout)
        differences = compare(parallel, raw)
        found[name] = (differences, *traffic(parallel, raw))
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def on_ranks(num_ranks: int, folder: Path, cases: tuple[str, ...]) -> list[dict[str, Any]]:
    # Forked: every import is there already.
    mp.start_processes(one_rank, (num_ranks, folder, cases), nprocs=num_ranks, start_method="fork")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_ranks)]


def check(ranks: list[dict[str, Any]], cases: tuple[str, ...]) -> None:
    for found in ranks:
        assert tuple(found) == cases
        for name, (differences, counted, planned) in found.items():
            assert differences["parameters"] > 0
            for what in ("loss", "gradient", "norm", "clipped"):
                assert differences[what] < 1e-5, f"{name}: {what} differs by {differences[what]}"
            if name in COUNTED:
                counted, planned = (
                    {key: value for key, value in side.items() if "all_to_all" not in key}
                    for side in (counted, planned)
                )
            assert counted.keys() == planned.keys(), name
            for key, (calls, size) in counted.items():
                assert planned[key] == [calls, pytest.approx(size)], f"{name}: {key}"


QUICK = ("shard", "tensor", "context", "1f1b", "even experts")


def test_two_ranks_train_as_one_and_say_what_is_planned(tmp_path: Path) -> None:
    check(on_ranks(2, tmp_path, QUICK), QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_every_composition_trains_as_one_and_says_what_is_planned(tmp_path: Path, num_ranks: int) -> None:
    cases = tuple(CASES[num_ranks])
    check(on_ranks(num_ranks, tmp_path, cases), cases)


def test_projections_are_taken_apart_and_put_together() -> None:
    model, batch = build(DENSE | {"attention_bias": True}), global_batch()
    before = language_loss(model, batch)
    take_apart(model)
    names = [name for name, _ in model.named_parameters() if "qkv" in name or "gate_up" in name]
    assert {"layers.0.mixer.qkv.2.weight", "layers.3.ffn.gate_up.1.weight"} <= set(names)
    torch.testing.assert_close(language_loss(model, batch), before)
    put_together(model)
    whole = build(DENSE | {"attention_bias": True})
    assert model.state_dict().keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
