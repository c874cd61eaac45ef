"""Tiny real models, written by the libraries whose formats they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from model_hub import WANTED, Hub
from safetensors.numpy import save

from wootz.store import ModelStore

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 32}


@pytest.fixture
def model_files() -> dict[str, bytes]:
    """A model folder in two shards: 64 x 32 + 300,000 parameters, 1.2 MB."""
    shards = {
        "model-00001-of-00002.safetensors": {"model.embed_tokens.weight": np.zeros((64, 32), dtype=np.float32)},
        "model-00002-of-00002.safetensors": {"lm_head.weight": np.arange(300_000, dtype=np.float32).reshape(300, 1000)},
    }
    index = {"weight_map": {tensor: name for name, tensors in shards.items() for tensor in tensors}}
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b'{"version": "1.0"}',
        "LICENSE": b"Apache License 2.0",
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{name: save(tensors) for name, tensors in shards.items()},
        # What a hub repository also holds and nobody serves a model from:
        "README.md": b"# A model",
        "pytorch_model.bin": b"a pickle",
        "onnx/config.json": b"{}",
        "onnx/model.safetensors": b"another export",
    }


@pytest.fixture
def model_folder(tmp_path: Path, model_files: dict[str, bytes]) -> Path:
    folder = tmp_path / "My Model"
    for name in WANTED:
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(model_files[name])
    return folder


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """8 x 32 parameters, F16."""
    file = tmp_path / "Tiny-Chat.F16.gguf"
    writer = GGUFWriter(file, "qwen2")
    writer.add_license("mit")
    writer.add_tensor("output.weight", np.zeros((8, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def hub(model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-token-here"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub("acme/Tiny-Llama", model_files).serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("MODELSCOPE_DOMAIN", hub.url)
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")
