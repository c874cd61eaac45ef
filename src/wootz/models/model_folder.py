"""Model folders in Hugging Face layout: ``config.json`` and ``*.safetensors``, possibly in shards.

Where there is no safetensors file, ``pytorch_model*.bin`` is read as far as that is safe; see `wootz.models.pickled`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from wootz.core.errors import ModelFileError
from wootz.models import families, mxfp4
from wootz.models.cut import Cut
from wootz.models.families import ModelConfig
from wootz.models.pickled import PickledShard
from wootz.models.pooling import read_pooling
from wootz.models.quantized_layouts import Layout, layout_of
from wootz.models.quantized_weight import QuantizedWeight

_WEIGHT_FILES = {
    "*.safetensors": "model.safetensors.index.json",
    "pytorch_model*.bin": "pytorch_model.bin.index.json",
}
"""What holds the weights, and what says which shard holds which."""


class FolderCheckpoint:
    """A folder's config and tensors. Shards are opened (memory-mapped) at once and read when asked."""

    def __init__(self, folder: Path) -> None:
        self.config = read_config(folder)
        self._layout = _layout(folder)
        self._shards = {file: _open_shard(file) for file in _weight_files(folder)}
        prefix = families.family_of(self.config.raw["model_type"]).prefix
        self._shard_of = {
            _modern(name.removeprefix(prefix)): (name, file, shard)
            for file, shard in self._shards.items()
            for name in shard.keys()  # noqa: SIM118
        }
        with_blocks, with_scales = (
            {name.removesuffix(half) for name in self._shard_of if name.endswith(half)}
            for half in (mxfp4.BLOCKS, mxfp4.SCALES)
        )
        self._packed = with_blocks & with_scales
        halves = {name + half for name in self._packed for half in (mxfp4.BLOCKS, mxfp4.SCALES)}
        self._quantized = self._find_quantized()
        endings = self._layout.endings if self._layout else ()
        halves |= {module + ending for module in self._quantized.values() for ending in endings}
        self.names = self._packed | self._quantized.keys() | (self._shard_of.keys() - halves)

    @property
    def positions(self) -> str | None:
        """The scheme that the weights have learned, if whoever wrote them said so."""
        metadata = [shard.metadata() or {} for shard in self._shards.values() if not isinstance(shard, PickledShard)]
        return next((found["positions"] for found in metadata if "positions" in found), None)

    @property
    def linears(self) -> Collection[str]:
        """The weights that are read ``(out, in)``, in whichever order the architecture's own checkpoints keep them."""
        return self._quantized

    def tensor(self, name: str) -> Tensor:
        if (weight := self.blocks(name)) is not None:
            return weight.dequantize()
        if name in self._packed:  # (E, out, in), where the same unpacked is (E, in, out)
            blocks, scales = self._stored(name + mxfp4.BLOCKS), self._stored(name + mxfp4.SCALES)
            if blocks.ndim != 4 or blocks.shape[:-1] != scales.shape:
                file = self._shard_of[name + mxfp4.BLOCKS][1]
                raise ModelFileError(f"{file}: {name} has blocks {(*blocks.shape,)}, but scales {(*scales.shape,)}")
            return mxfp4.dequantize_mxfp4(blocks, scales).transpose(1, 2)
        tensor = self._stored(name)
        if tensor.dtype.itemsize == 1:  # it would be copied as the numbers that it only stands for
            raise ModelFileError(f"{self._shard_of[name][1]}: {name} is {tensor.dtype}, and no scales lie beside it")
        return tensor

    def _stored(self, name: str) -> Tensor:
        theirs, file, shard = self._shard_of[name]
        try:
            return shard.get_tensor(theirs)
        except SafetensorError as error:
            raise ModelFileError(f"{file}: cannot read {name} ({error})") from None

    def blocks(self, name: str) -> QuantizedWeight | None:
        if self._layout is None or name not in self._quantized:
            return None
        module = self._quantized[name]
        stored = ((ending, module + ending) for ending in self._layout.endings)
        tensors = {ending: self._stored(full) for ending, full in stored if full in self._shard_of}
        try:
            return self._layout.read(module, tensors)
        except KeyError as error:
            reason = f"lacks {error.args[0]}"
        except (ValueError, RuntimeError, TypeError) as error:
            reason = str(error).partition("\n")[0]
        raise ModelFileError(f"{self._shard_of[module + self._layout.marker][1]}: {module}: {reason}")

    def _find_quantized(self) -> dict[str, str]:
        """The weights that lie quantised, and the projections whose weights they are."""
        marker = self._layout.marker if self._layout else None
        modules = (name.removesuffix(marker) for name in self._shard_of if marker and name.endswith(marker))
        return {f"{module}.weight": module for module in modules}

    def shape(self, name: str) -> tuple[int, ...]:
        slices = self._slices(name)
        return tuple(self.tensor(name).shape if slices is None else slices.get_shape())

    def part(self, name: str, cut: Cut) -> Tensor:
        slices = self._slices(name)
        return cut.of(self.tensor(name)) if slices is None else cut.read(slices)

    def _slices(self, name: str) -> Any:
        """The tensor as safetensors reads parts of it; None where it has to be read as a whole."""
        if name in self._packed or name in self._quantized:
            return None
        theirs, _, shard = self._shard_of[name]
        slices = None if isinstance(shard, PickledShard) else shard.get_slice(theirs)
        return None if slices is None or slices.get_dtype().endswith("8") or "F8" in slices.get_dtype() else slices


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
        raw.pop("quantization_config", None)
        return families.read_config(raw)
    except KeyError as error:
        raise ModelFileError(f"{file}: lacks {error.args[0]!r}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelFileError(f"{file}: {error}") from None


def read_quantization(folder: Path) -> dict[str, Any] | None:
    """The ``quantization_config`` of a folder's ``config.json``."""
    return _read_json(folder / "config.json").get("quantization_config")


def _layout(folder: Path) -> Layout | None:
    """How the weights are quantised, if they are. MXFP4, of experts only, is told by its tensors' names."""
    config = read_quantization(folder)
    if config is None or config.get("quant_method") == "mxfp4":
        return None
    file = folder / "config.json"
    try:
        return layout_of(config)
    except KeyError as error:
        raise ModelFileError(f"{file}: quantization_config lacks {error.args[0]!r}") from None
    except (TypeError, ValueError, AttributeError) as error:
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
