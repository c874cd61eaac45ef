"""A model that cannot be loaded is one clear line that names the file and what is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference_models import save_reference
from safetensors.torch import load_file, save_file

from wootz.core import ConfigError, ModelFileError, NotFoundError
from wootz.models import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_reference(tmp_path, "llama2")
    return tmp_path


def edit_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, file)


def assert_refused(path: Path, *says: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for words in says:
        assert words in message


def test_no_such_path(tmp_path: Path) -> None:
    for name in ("nothing", "nothing.gguf"):
        with pytest.raises(NotFoundError, match=name):
            load(tmp_path / name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert_refused(tmp_path, "no config.json")


def test_config_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": ')
    assert_refused(folder, "config.json", "not valid JSON")


def test_config_with_a_missing_key(folder: Path) -> None:
    file = folder / "config.json"
    raw = json.loads(file.read_text())
    del raw["hidden_size"]
    file.write_text(json.dumps(raw))
    assert_refused(folder, "config.json", "hidden_size")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "clippy"}, 'architecture "clippy" is not supported'),
        ({"hidden_act": "sin"}, 'activation "sin"'),
        ({"quantization_config": {"quant_method": "aqlm"}}, 'quantised as "aqlm"'),
        ({"quantization_config": {"quant_method": "gptq", "bits": 5}}, "GPTQ of 5 bits"),
        ({"quantization_config": {"quant_method": "awq", "version": "gemv"}}, 'version "gemv"'),
        ({"rope_parameters": {"rope_type": "yarrow", "rope_theta": 1e4}}, 'rotary scaling "yarrow"'),
        ({"num_hidden_layers": "three"}, "num_hidden_layers"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_kv_heads"),
    ],
    ids=["architecture", "activation", "quantised", "gptq", "awq", "rope", "type", "negative", "heads"],
)
def test_config_of_a_model_we_cannot_run(folder: Path, changes: dict, says: str) -> None:
    edit_config(folder, **changes)
    assert_refused(folder, "config.json", says)


def test_more_layers_than_weights(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=4)
    assert_refused(folder, 'lacks tensor "model.layers.3.', "and 8 more")


def test_more_weights_than_layers(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=2)
    assert_refused(folder, "model.layers.2.", "does not have")


def test_a_missing_tensor(folder: Path) -> None:
    edit_weights(folder, model__norm__weight=None)
    assert_refused(folder, 'lacks tensor "model.norm.weight"')


def test_a_tensor_of_another_shape(folder: Path) -> None:
    edit_weights(folder, model__norm__weight=torch.ones(65))
    assert_refused(folder, '"model.norm.weight" has shape (65,)', "(64,)")


@pytest.mark.parametrize("keep", [0, 5, 1000, 100_000])
def test_weights_cut_short(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert_refused(folder, "model.safetensors", "damaged")


def test_a_missing_shard(tmp_path: Path) -> None:
    save_reference(tmp_path, "llama2", max_shard_size="100KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    assert_refused(tmp_path, shard.name, "missing")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert_refused(folder, "no *.safetensors")


def test_some_other_file(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"x")
    assert_refused(file, "neither a model folder nor a .gguf file")


@pytest.mark.parametrize("keep", [0, 3, 4, 20, 100, 5_000, 2_000_000, 50_000_000])
def test_gguf_cut_short(tmp_path: Path, smollm2_gguf: Path, keep: int) -> None:
    file = tmp_path / "cut.gguf"
    with smollm2_gguf.open("rb") as whole:
        file.write_bytes(whole.read(keep))
    assert_refused(file)


def test_gguf_that_is_something_else(tmp_path: Path) -> None:
    file = tmp_path / "page.gguf"
    file.write_bytes(b"<!doctype html>" * 100)
    assert_refused(file, "not a GGUF file")


def test_gguf_with_damaged_bytes_never_fails_otherwise(tmp_path: Path, smollm2_gguf: Path) -> None:
    """Whatever the header says, it is refused in one line, or it is read: no other exception, no endless loop."""
    from wootz.models.gguf import GGUFCheckpoint

    with smollm2_gguf.open("rb") as whole:
        header = whole.read(2_500_000)
    generator = torch.Generator().manual_seed(0)
    file = tmp_path / "damaged.gguf"
    for _ in range(40):
        damaged = bytearray(header)
        for _ in range(3):
            at = torch.randint(4, 1500, (), generator=generator).item()
            damaged[at] = torch.randint(256, (), generator=generator).item()
        file.write_bytes(damaged)
        with pytest.raises(ModelFileError):  # the tensors' data is cut off, so reading it in full cannot succeed
            GGUFCheckpoint(file)


def test_unknown_dtype_and_device(folder: Path) -> None:
    for dtype in ("int8", "nonsense", "nn", torch.int64):
        with pytest.raises(ConfigError, match="not a dtype for weights"):
            load(folder, dtype=dtype)
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(ConfigError, match="cannot be used"):
            load(folder, device=device)


def test_without_pytorch_the_extra_is_named() -> None:
    code = "import sys; sys.modules['torch'] = None; import wootz.models; wootz.models.load"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.strip().splitlines()[-1].endswith("wootz.models needs \"torch\"; pip install 'wootz[engine]'")


def test_importing_the_room_does_not_import_pytorch() -> None:
    code = "import sys, wootz.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
