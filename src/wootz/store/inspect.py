"""What a model on disk is, read from its headers alone: no weights are loaded, and no PyTorch.

Also the check that it *is* one: a truncated or damaged file is found here, before it is stored.
Formats: https://github.com/huggingface/safetensors#format, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wootz.core import ModelFileError
from wootz.core.gguf import GGUFFile

MAX_SAFETENSORS_HEADER = 100 * 2**20
"""The format's own limit."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    format: str
    """``safetensors`` or ``gguf``."""
    family: str
    """Hugging Face's ``model_type`` or GGUF's ``general.architecture``: ``llama``, ``qwen2``, …"""
    num_parameters: int
    dtype: str
    """The type that most parameters are stored in: ``BF16``, ``Q4_1``, …"""
    license: str | None
    working_length: int | None = None
    """The longest text that somebody measured it to work on, as its ``config.json`` says."""


def inspect_model(path: Path) -> ModelInfo:
    """A folder in Hugging Face layout, or a GGUF file. Raises `ModelFileError` for anything that is no whole model."""
    if path.is_dir():
        return _inspect_folder(path)
    return _inspect_gguf(path)


def weights_of(folder: Path) -> Path:
    """What to load from a model's folder: its GGUF file where it has one, else the folder itself."""
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) > 1:
        raise _broken(folder, f"holds {len(ggufs)} GGUF files; give the path of one")
    return ggufs[0] if ggufs else folder


def _broken(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(f"{path.name}: {reason}")


# --- safetensors ----------------------------------------------------------------------------------------------


def _inspect_folder(folder: Path) -> ModelInfo:
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise _broken(folder, "no model here (neither *.safetensors nor *.gguf)")
    config = _read_json(folder / "config.json")
    family = config.get("model_type")
    if not isinstance(family, str):
        raise _broken(folder / "config.json", 'names no "model_type"')
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read_json(index).get("weight_map", {})
        if missing := {str(shard) for shard in weight_map.values()} - {shard.name for shard in shards}:
            raise _broken(index, f"names {min(missing)}, which is not there")
    parameters = Counter[str]()
    for shard in shards:
        parameters += _safetensors_parameters(shard)
    return ModelInfo(
        format="safetensors",
        family=family,
        num_parameters=parameters.total(),
        dtype=parameters.most_common(1)[0][0],
        license=None,
        working_length=_working_length(config),
    )


def _working_length(config: dict[str, Any]) -> int | None:
    for record in (config.get("working_context"), config.get("context_extension")):
        if isinstance(record, dict) and isinstance(length := record.get("working_length"), int):
            return length
    return None


def _safetensors_parameters(file: Path) -> Counter[str]:
    """Number of parameters per stored type."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, MAX_SAFETENSORS_HEADER):
            raise _broken(file, "no safetensors file, or a truncated one")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            parameters = Counter[str]()
            for tensor in header.values():
                parameters[tensor["dtype"]] += math.prod(tensor["shape"])
            end = max(tensor["data_offsets"][1] for tensor in header.values())
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise _broken(file, "its safetensors header is damaged") from None
    if 8 + length + end != size:
        raise _broken(file, f"should be {8 + length + end} bytes long by its header, and is {size}")
    return parameters


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise _broken(file, "is missing") from None
    except ValueError:
        raise _broken(file, "is no JSON") from None
    if not isinstance(content, dict):
        raise _broken(file, "is no JSON object")
    return content


# --- GGUF -----------------------------------------------------------------------------------------------------


def _inspect_gguf(path: Path) -> ModelInfo:
    file = GGUFFile(path)
    parameters = Counter[str]()
    for tensor in file.tensors.values():
        parameters[tensor.type] += math.prod(tensor.shape)
    family, license = file.metadata.get("general.architecture"), file.metadata.get("general.license")
    if not isinstance(family, str) or not parameters:
        raise _broken(path, "a GGUF file without a model")
    return ModelInfo(
        format="gguf",
        family=family,
        num_parameters=parameters.total(),
        dtype=parameters.most_common(1)[0][0],
        license=license if isinstance(license, str) else None,
    )
