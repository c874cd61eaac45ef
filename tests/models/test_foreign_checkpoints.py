"""Checkpoints that are, or hold, pickles: read where that is safe, refused in one line where it is not."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from reference_models import TOKENS, reference_logits, save_reference
from safetensors.torch import load_file

from wootz.core import ModelFileError
from wootz.models import load
from wootz.models.distributed_checkpoint import load_distributed


class Payload:
    """What a malicious pickle does when it is opened as pickles are."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def as_pickle(folder: Path, **extra: object) -> Path:
    weights = load_file(folder / "model.safetensors")
    torch.save({**weights, **extra}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def assert_refused(path: Path, says: str, load=load) -> None:
    with pytest.raises(ModelFileError, match=says) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@torch.inference_mode()
def test_pickled_weights_load_like_any_others(tmp_path: Path) -> None:
    reference = save_reference(tmp_path, "llama2")
    as_pickle(tmp_path)
    torch.testing.assert_close(load(tmp_path).logits(TOKENS), reference_logits(reference), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_pickles_in_shards_and_of_the_old_format(tmp_path: Path) -> None:
    reference = save_reference(tmp_path, "llama2")
    weights = list(load_file(tmp_path / "model.safetensors").items())
    (tmp_path / "model.safetensors").unlink()
    torch.save(dict(weights[:5]), tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save(dict(weights[5:]), tmp_path / "pytorch_model-00002-of-00002.bin", _use_new_zipfile_serialization=False)
    torch.save({"lr": Payload(tmp_path / "x")}, tmp_path / "training_args.bin")  # lies beside many checkpoints
    torch.testing.assert_close(load(tmp_path).logits(TOKENS), reference_logits(reference), atol=1e-4, rtol=0)
    assert not (tmp_path / "x").exists()


def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    save_reference(tmp_path, "llama2")
    trace = tmp_path / "it-ran"
    file = as_pickle(tmp_path, extra=Payload(trace))
    assert_refused(tmp_path, "could run code")
    file.write_bytes(pickle.dumps(Payload(trace)))
    assert_refused(tmp_path, "could run code")
    assert not trace.exists()
    pickle.loads(file.read_bytes())
    assert trace.exists()  # so the payload would have


def test_pickles_of_something_else_or_cut_short_are_refused(tmp_path: Path) -> None:
    save_reference(tmp_path, "llama2")
    file = as_pickle(tmp_path)
    whole = file.read_bytes()
    for keep in (0, 10, 5_000, len(whole) - 100):
        file.write_bytes(whole[:keep])
        assert_refused(tmp_path, "pickle")
    torch.save([torch.ones(2)], file)
    assert_refused(tmp_path, "not a state dict")


def save_distributed(state: dict, folder: Path) -> None:
    dcp.save(state, checkpoint_id=folder, no_dist=True)


@pytest.fixture
def theirs(tmp_path: Path) -> tuple[Path, transformers.PreTrainedModel]:
    return tmp_path / "theirs", save_reference(tmp_path / "theirs", "qwen3", tied=True)


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("naming", ["hugging face", "ours", "nested"])
def test_distributed_checkpoints_load_in_either_naming(tmp_path: Path, theirs, naming: str) -> None:
    folder, reference = theirs
    weights = load(folder).state_dict() if naming == "ours" else reference.state_dict()
    optimizer = {"optim": {name: torch.zeros_like(tensor) for name, tensor in weights.items()}}
    state = {
        "hugging face": weights,
        "ours": {"model": weights, "step": 7, "args": {"lr": 0.1}} | optimizer,
        "nested": {"app": {"model": {"module": weights}}} | optimizer,
    }[naming]
    save_distributed(state, tmp_path / "dcp")
    model = load_distributed(tmp_path / "dcp", config=folder)
    torch.testing.assert_close(model.logits(TOKENS), reference_logits(reference), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_shards_of_several_processes_are_joined(tmp_path: Path, theirs) -> None:
    folder, reference = theirs
    script = f"""
import os, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=int(os.environ["RANK"]), world_size=2)
mesh = init_device_mesh("cpu", (2,))
weights = load_file("{folder}/model.safetensors")
dcp.save({{n: distribute_tensor(t, mesh, [Shard(0)]) for n, t in weights.items()}}, checkpoint_id="{tmp_path}/dcp")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", script], env=environment | {"RANK": str(rank)}) for rank in (0, 1)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(list((tmp_path / "dcp").glob("*.distcp"))) == 2
    model = load_distributed(tmp_path / "dcp", config=folder)
    with torch.inference_mode():
        torch.testing.assert_close(model.logits(TOKENS), reference_logits(reference), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_bad_distributed_checkpoints_are_refused_and_run_nothing(tmp_path: Path, theirs) -> None:
    folder, reference = theirs

    def load_it(path: Path) -> None:
        load_distributed(path, config=folder)

    assert_refused(folder, "no .metadata", load_it)
    weights = reference.state_dict()
    save_distributed({**weights, "model.norm.weight": torch.ones(65)}, tmp_path / "shape")
    assert_refused(tmp_path / "shape", r"has shape \(65,\)", load_it)
    weights.pop("model.norm.weight")
    save_distributed(weights, tmp_path / "lacking")
    assert_refused(tmp_path / "lacking", "does not hold every weight", load_it)

    good = tmp_path / "good"
    save_distributed(reference.state_dict(), good)
    shard = next(good.glob("*.distcp"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert_refused(good, "damaged", load_it)
    shard.write_bytes(whole)

    metadata = pickle.loads((good / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../theirs/model.safetensors"
    (good / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_refused(good, "points outside its folder", load_it)
    trace = tmp_path / "it-ran"
    (good / ".metadata").write_bytes(pickle.dumps(Payload(trace)))
    assert_refused(good, "posix.mkdir, which could run code", load_it)
    (good / ".metadata").write_bytes(b"\x80")
    assert_refused(good, "damaged", load_it)
    assert not trace.exists()
