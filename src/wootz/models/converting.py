"""Any model file into any other: `convert`.

Works tensor by tensor and never holds the model, so what can be stored can be converted. The source is checked as it
would be for loading: names and shapes are those that its config asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wootz.core.atomic import atomic_folder
from wootz.core.errors import ConfigError
from wootz.core.gguf import GGUFFile
from wootz.core.gguf_writer import write_gguf
from wootz.core.progress import SILENT, Progress
from wootz.models.adapters.merge import merge
from wootz.models.decoder import Decoder, DecoderConfig
from wootz.models.distributed_checkpoint import is_distributed, load_distributed
from wootz.models.gguf_export import gguf_tensors
from wootz.models.gguf_metadata import FILE_TYPES, gguf_metadata
from wootz.models.loading import check_names, load, open_checkpoint, read_as
from wootz.models.model_folder import FolderCheckpoint
from wootz.models.names import checkpoint_views
from wootz.models.positions.guards import refuse_swap, scheme_of
from wootz.models.saving import MAX_SHARD_BYTES, check_complete, copy_other_files, write_config, write_weights

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NOT_COPIED = ("architecture", "file_type", "quantization_version", "alignment", "type")


def convert(
    source: Path | str | Decoder,
    target: Path | str,
    *,
    type: str | None = None,
    output_type: str | None = None,
    config: Path | str | None = None,
    adapter: Path | str | None = None,
    vocabulary: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    replace: bool = False,
    progress: Progress = SILENT,
) -> None:
    """Write the model ``source`` (folder, GGUF file, distributed checkpoint, or a model in memory) to ``target``:
    a GGUF file if that ends in ``.gguf``, else a folder.

    ``type`` is F32, F16 or BF16, and for GGUF also a block format (`FILE_TYPES`), in any case; by default the type of
    the source, which is F32 for what was quantised. ``output_type`` is for a GGUF file's output matrix (or the
    embedding that it is tied to), which otherwise gets six bits at least. ``config`` names the folder with a
    distributed checkpoint's ``config.json``. ``adapter`` names a LoRA folder in PEFT's format that is merged into the
    source, which then has to fit into memory. The tokenizer comes along where source and target are of one kind; from
    one kind into the other it is the caller's (`wootz.tokenization.export`): ``vocabulary`` for a GGUF file, ``files``
    for a folder.

    Raises `ModelFileError` for what is wrong with the source, `ConfigError` for what cannot be written.
    """
    target = Path(target)
    to_gguf = target.suffix == ".gguf"
    if target.exists() and (to_gguf or target.is_file()) and not replace:
        raise ConfigError(f"{target}: exists already", hint="remove it first or allow it to be replaced")
    model = _open(source, config)
    if adapter is not None:
        model = _with_adapter(source, adapter, model)
    type = _type(type, model, to_gguf=to_gguf)
    output_type = output_type and _type(output_type, model, to_gguf=to_gguf)
    if to_gguf:
        tensors = gguf_tensors(model.config, model.shapes, model.read, type, output_type)
        metadata = gguf_metadata(model.config, type, tensors.keys())
        metadata |= _own_metadata(model.gguf or {}) | dict(vocabulary or {})
        progress.set_total(sum(tensor.num_bytes for tensor in tensors.values()))
        write_gguf(target, metadata, tensors, progress=progress)
        return
    progress.set_total(sum(prod(shape) for shape in model.shapes.values()) * _DTYPES[type].itemsize)
    with atomic_folder(target, replace_if="config.json" if replace else None) as folder:
        if model.folder is not None:
            copy_other_files(model.folder, folder)
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        write_config(folder, dict(model.config.raw), _DTYPES[type])
        weights = ((name, model.read(name).to(_DTYPES[type])) for name in model.shapes)
        with torch.device("meta"):
            positions = scheme_of(model.config.build())
        write_weights(folder, weights, max_shard_bytes=max_shard_bytes, positions=positions, progress=progress)


@dataclass(frozen=True)
class _Source:
    config: DecoderConfig
    shapes: dict[str, tuple[int, ...]]
    """By Hugging Face name, in order."""
    read: Callable[[str], Tensor]
    folder: Path | None = None
    """Where the tokenizer's files lie, if it is a folder."""
    gguf: Mapping[str, Any] | None = None
    """The metadata, if it is a GGUF file."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the first matrix."""
        return self.read(next(name for name, shape in self.shapes.items() if len(shape) > 1)).dtype


def _open(source: Path | str | Decoder, config: Path | str | None) -> _Source:
    if isinstance(source, Decoder):
        return _open_model(source)
    path = Path(source)
    if path.is_dir() and is_distributed(path):
        return _open_model(load_distributed(path, config=config), Path(config or path))
    checkpoint = open_checkpoint(path)
    if not isinstance(checkpoint.config, DecoderConfig):
        raise ConfigError(f"{path}: models of this kind cannot be converted (decoders can)")
    with torch.device("meta"):
        model = checkpoint.config.build()
    if isinstance(checkpoint, FolderCheckpoint) and (learned := checkpoint.positions):
        refuse_swap(learned, scheme_of(model), what=f"{path}: the weights")
    views = checkpoint_views(model)
    check_names(path, model, views.keys(), checkpoint.names)

    def read(name: str) -> Tensor:
        return read_as(path, checkpoint, name, views[name])

    shapes = {name: tuple(view.shape) for name, view in views.items()}
    if path.is_dir():
        return _Source(checkpoint.config, shapes, read, folder=path)
    return _Source(checkpoint.config, shapes, read, gguf=GGUFFile(path).metadata)


def _open_model(model: Decoder, folder: Path | None = None) -> _Source:
    views = checkpoint_views(model)
    check_complete(model, views)
    shapes = {name: tuple(view.shape) for name, view in views.items()}
    return _Source(model.config, shapes, lambda name: views[name].cpu(), folder=folder)


def _with_adapter(source: Path | str | Decoder, adapter: Path | str, opened: _Source) -> _Source:
    if isinstance(source, Decoder):
        raise ConfigError("merge the adapter into the model first (wootz.models.adapters.merge)")
    model = load(source, dtype=opened.dtype)
    merge(model, adapter)
    return replace_fields(_open_model(model, opened.folder), gguf=opened.gguf)


def _own_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What one GGUF file takes over from another: the tokenizer, and what the model is called and may be used for."""
    general = {key: value for key, value in metadata.items() if key.startswith("general.")}
    kept = {key: value for key, value in general.items() if key.removeprefix("general.") not in _NOT_COPIED}
    return kept | {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}


def _type(type: str | None, source: _Source, *, to_gguf: bool) -> str:
    known = FILE_TYPES if to_gguf else _DTYPES
    if type is None:
        return next((name for name, dtype in _DTYPES.items() if dtype == source.dtype), "F32")
    if type.upper() not in known:
        where = "a GGUF file" if to_gguf else "a folder"
        raise ConfigError(f'"{type}" is not a type of weights in {where}', hint=f"use one of {', '.join(known)}")
    return type.upper()
