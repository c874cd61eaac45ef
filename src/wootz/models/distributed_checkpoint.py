"""Checkpoints that ``torch.distributed.checkpoint`` wrote, from any number of processes: `load_distributed`.

Such a folder holds the shards of every process (``*.distcp``) and, in ``.metadata``, which piece of which tensor lies
where. PyTorch reads that file with plain ``pickle``, which runs whatever it says; here an unpickler that knows just the
classes of the format does. The shards themselves PyTorch reads with ``weights_only``, and what is no tensor (the
optimizer's numbers, the trainer's step) is not read at all.

The weights may be named as in this house or as in Hugging Face checkpoints, below any prefix (``model.``,
``app.model.module.``): the one under which every weight of the model is found.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict

from wootz.core.errors import ModelFileError
from wootz.models.decoder import Decoder
from wootz.models.model_folder import read_config
from wootz.models.names import checkpoint_views

_KNOWN = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
}
"""All that the format is made of, besides dtypes."""


def is_distributed(folder: Path) -> bool:
    return (folder / ".metadata").is_file()


def load_distributed(
    folder: Path | str, *, config: Path | str | None = None, dtype: torch.dtype | None = None
) -> Decoder:
    """The model whose weights lie in ``folder``, on the CPU; ``config`` is the folder of its ``config.json`` if that is
    not here too. Raises `ModelFileError` for anything wrong with the files.
    """
    folder = Path(folder)
    reader = _Reader(folder)
    stored = reader.tensors
    with torch.device("meta"):
        model = read_config(Path(config or folder)).build()
    model.to(dtype or _common_dtype(stored)).to_empty(device="cpu")
    assert isinstance(model, Decoder)
    model.tie_weights()
    ours = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        ours.pop("head.weight")
    wanted = _as_named_in(folder, stored, ours, checkpoint_views(model))
    for name, tensor in wanted.items():
        if stored[name].size != tensor.shape:
            raise ModelFileError(
                f'{folder}: tensor "{name}" has shape {tuple(stored[name].size)}, '
                f"but the config makes it {tuple(tensor.shape)}"
            )
    try:
        with warnings.catch_warnings(action="ignore"):  # that there is one process is as it should be
            load_state_dict(wanted, storage_reader=reader, no_dist=True)
    except (Exception, CheckpointException) as error:  # the latter wraps whatever happened, and is no Exception
        reason = str(error).strip().splitlines()[-1]
        raise ModelFileError(f"{folder}: damaged checkpoint ({reason})") from None
    return model.eval()


class _Reader(FileSystemReader):
    """PyTorch's reader, with a ``.metadata`` that cannot run code and points to files of this folder alone."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._metadata = _read_metadata(folder)

    @property
    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """All but the optimizer's: its moments have the names and shapes of the weights."""
        return {
            name: entry
            for name, entry in self._metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and not re.search(r"(^|\.)optim", name)
        }

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


def _read_metadata(folder: Path) -> Metadata:
    file = folder / ".metadata"
    try:
        with file.open("rb") as stream:
            metadata = _Unpickler(stream).load()
    except FileNotFoundError:
        raise ModelFileError(f"{folder}: no .metadata of a distributed checkpoint in this folder") from None
    except _RefusedError as error:
        raise ModelFileError(f"{file}: refused, it asks for {error}, which could run code") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise ModelFileError(f"{file}: damaged ({error})", hint="copy the checkpoint again") from None
    if not isinstance(metadata, Metadata):
        raise ModelFileError(f"{file}: not the metadata of a distributed checkpoint")
    for place in (metadata.storage_data or {}).values():
        if Path(place.relative_path).name != place.relative_path:
            raise ModelFileError(f"{file}: points outside its folder ({place.relative_path})")
    metadata.storage_meta = metadata.storage_meta or StorageMeta()
    return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if name in _KNOWN.get(module, ()):
            return super().find_class(module, name)
        raise _RefusedError(f"{module}.{name}")


class _RefusedError(Exception):
    """A class that the format does not need."""


def _as_named_in(
    folder: Path, stored: dict[str, TensorStorageMetadata], *namings: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The model's tensors by the checkpoint's own names."""
    probe = ""
    for tensors in namings:
        probe = max(tensors, key=len)
        for prefix in sorted((name.removesuffix(probe) for name in stored if name.endswith(probe)), key=len):
            if all(prefix + name in stored for name in tensors):
                return {prefix + name: tensor for name, tensor in tensors.items()}
    raise ModelFileError(
        f"{folder}: does not hold every weight of this model, such as {probe}, under one prefix",
        hint="the checkpoint is incomplete or of another architecture",
    )


def _common_dtype(stored: dict[str, TensorStorageMetadata]) -> torch.dtype:
    floating = [entry.properties.dtype for entry in stored.values() if entry.properties.dtype.is_floating_point]
    return max(set(floating), key=floating.count, default=torch.float32)
