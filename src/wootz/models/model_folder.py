"""Model folders in Hugging Face layout: ``config.json`` and ``*.safetensors``, possibly in shards.

Where there is no safetensors file, ``pytorch_model*.bin`` is read as far as that is safe; see `wootz.models.pickled`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from wootz.core.errors import ModelFileError
from wootz.models import families
from wootz.models.cut import Cut
from wootz.models.families import ModelConfig
from wootz.models.folder_schemes import find_split, refuse_unknown
from wootz.models.pickled import PickledShard
from wootz.models.pooling import read_pooling

_WEIGHT_FILES = {
    "*.safetensors": "model.safetensors.index.json",
    "pytorch_model*.bin": "pytorch_model.bin.index.json",
}
"""What holds the weights, and what says which shard holds which."""


class FolderCheckpoint:
    """A folder's config and tensors. Shards are opened (memory-mapped) at once and read when asked."""

    def __init__(self, folder: Path) -> None:
        self.config = read_config(folder)
        self._quantization = _read_json(folder / "config.json").get("quantization_config") or {}
        self._shards = {file: _open_shard(file) for file in _weight_files(folder)}
        prefix = families.family_of(self.config.raw["model_type"]).prefix
        self._shard_of = {
            _modern(name.removeprefix(prefix)): (name, file, shard)
            for file, shard in self._shards.items()
            for name in shard.keys()  # noqa: SIM118
        }
        self._split = find_split(self._shard_of)
        parts = {part for split in self._split.values() for part in split.names}
        self.names = self._split.keys() | (self._shard_of.keys() - parts)

    @property
    def positions(self) -> str | None:
        """The scheme that the weights have learned, if whoever wrote them said so."""
        metadata = [shard.metadata() or {} for shard in self._shards.values() if not isinstance(shard, PickledShard)]
        return next((found["positions"] for found in metadata if "positions" in found), None)

    def tensor(self, name: str) -> Tensor:
        if (split := self._split.get(name)) is None:
            tensor = self._stored(name)
            if tensor.dtype.itemsize == 1:  # it would be copied as the numbers that it only stands for
                raise ModelFileError(
                    f"{self._shard_of[name][1]}: {name} is {tensor.dtype}, and no scales lie beside it"
                )
            return tensor
        try:
            return split.scheme.dequantize(*map(self._stored, split.names), self._quantization)
        except ValueError as error:
            raise ModelFileError(f"{self._shard_of[split.names[0]][1]}: {name} {error}") from None

    def _stored(self, name: str) -> Tensor:
        theirs, file, shard = self._shard_of[name]
        try:
            return shard.get_tensor(theirs)
        except SafetensorError as error:
            raise ModelFileError(f"{file}: cannot read {name} ({error})") from None

    def shape(self, name: str) -> tuple[int, ...]:
        slices = self._slices(name)
        return tuple(self.tensor(name).shape if slices is None else slices.get_shape())

    def part(self, name: str, cut: Cut) -> Tensor:
        slices = self._slices(name)
        return cut.of(self.tensor(name)) if slices is None else cut.read(slices)

    def _slices(self, name: str) -> Any:
        """The tensor as safetensors reads parts of it; None where it has to be read as a whole."""
        if name in self._split:
            return None
        theirs, _, shard = self._shard_of[name]
        slices = None if isinstance(shard, PickledShard) else shard.get_slice(theirs)
        return None if slices is None or slices.get_dtype().endswith("8") or "F8" in slices.get_dtype() else slices

    def blocks(self, name: str) -> None:
        """There are no block formats in safetensors."""


def read_config(folder: Path) -> ModelConfig:
    """A folder's ``config.json``, with the end tokens of ``generation_config.json`` and the pooling that
    sentence-transformers wrote, where there are such files."""
    file = folder / "config.json"
    raw = _read_json(file)
    generation = folder / "generation_config.json"
    if generation.exists() and (end := _read_json(generation).get("eos_token_id")) is not None:
        raw["eos_token_id"] = end
    try:
        if pooling := read_pooling(folder):
            raw["pooling"] = pooling
        if (quantization := raw.pop("quantization_config", None)) is not None:
            refuse_unknown(quantization)
        return families.read_config(raw)
    except KeyError as error:
        raise ModelFileError(f"{file}: lacks {error.args[0]!r}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelFileError(f"{file}: {error}") from None


def _modern(name: str) -> str:
    """The first BERT checkpoints, read from TensorFlow, call a norm's weights as that does."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _weight_files(folder: Path) -> list[Path]:
    """Those of the index if there is one, else all; pickles only where there is no safetensors file."""
    for pattern, index in _WEIGHT_FILES.items():
        if (folder / index).exists():
            files = sorted({folder / shard for shard in _read_json(folder / index)["weight_map"].values()})
        else:
            files = sorted(folder.glob(pattern))
        if missing := [file for file in files if not file.exists()]:
            raise ModelFileError(f"{missing[0]}: this shard is missing", hint="fetch the model again")
        if files:
            return files
    raise ModelFileError(f"{folder}: no *.safetensors file in this folder")


def _open_shard(file: Path):
    if file.suffix == ".bin":
        return PickledShard(file)
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file}: damaged safetensors file ({error})", hint="fetch the model again") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ModelFileError(f"{file.parent}: no {file.name} in this folder") from None
    except ValueError as error:
        raise ModelFileError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise ModelFileError(f"{file}: not a JSON object")
    return raw
