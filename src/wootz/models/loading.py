"""From files to a model: `load`.

A model is a folder in Hugging Face layout (``config.json`` and ``*.safetensors``, possibly in shards) or one GGUF
file. Both are opened as a `Checkpoint`: a config, and tensors that are read one by one, by their Hugging Face names,
straight into place. So loading needs the memory of the model and of one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from wootz import kernels
from wootz.core.errors import ConfigError, ModelFileError, NotFoundError
from wootz.kernels.packing import arena
from wootz.models.block_weight import BlockWeight
from wootz.models.blocks.experts import GroupedLinear
from wootz.models.cut import Cut
from wootz.models.decoder import Decoder
from wootz.models.encoder import Encoder
from wootz.models.families import ModelConfig, family_of
from wootz.models.gguf import GGUFCheckpoint
from wootz.models.linear import Embedding, Linear
from wootz.models.model_folder import FolderCheckpoint
from wootz.models.names import checkpoint_pieces, checkpoint_views
from wootz.models.packed_weight import PackedWeight, layout_of
from wootz.models.positions.guards import refuse_swap, scheme_of
from wootz.models.quantized_weight import Multiplies, QuantizedWeight, stack


def load(
    path: Path | str,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    keep_quantized: Literal["exact", "packed"] | None = None,
    force_positions: bool = False,
) -> Decoder:
    """The model in a folder or ``.gguf`` file, its weights converted to ``dtype``.

    With ``keep_quantized``, quantised projections stay so: those of a folder anywhere, those of a GGUF file where
    `wootz.kernels` can compute with them (in float32 on a CPU). A fraction of the memory and time, but a model that can
    only be run. "exact" computes the same numbers; "packed" rounds activations to 8 bits where the kernels can hold the
    weights, which is several times as fast (`wootz.models.packed_weight`). Where a folder says to round inputs, only
    this does.

    Weights that were saved here say what position scheme they have learned; under a config with another one they are
    refused, unless ``force_positions``. Anything wrong with the files is one `ModelFileError` that names the file.
    """
    path, dtype, device = Path(path), _dtype(dtype), _device(device)
    checkpoint = open_checkpoint(path)
    with torch.device("meta"):
        model = cast(Decoder, checkpoint.config.build())
    if isinstance(checkpoint, FolderCheckpoint) and (learned := checkpoint.positions):
        refuse_swap(learned, scheme_of(model), what=f"{path}: the weights", force=force_positions)
    check_names(path, model, checkpoint_views(model).keys(), checkpoint.names)
    on_kernels = kernels.AVAILABLE and (dtype, device.type) == (torch.float32, "cpu")
    if keep_quantized and isinstance(checkpoint, FolderCheckpoint):  # before there is memory for what is not needed
        _hold_quantized(path, model, checkpoint, device, on_kernels, packed=keep_quantized == "packed")
    model.to(dtype).to_empty(device=device)
    model.tie_weights()
    views = checkpoint_views(model)
    if keep_quantized and on_kernels and isinstance(checkpoint, GGUFCheckpoint):
        for name in _keep_quantized(path, model, checkpoint, packed=keep_quantized == "packed"):
            del views[name]
    for name, view in views.items():
        view.copy_(read_as(path, checkpoint, name, view))
    return model.eval()


def load_encoder(
    path: Path | str, *, dtype: torch.dtype | str = torch.float32, device: torch.device | str = "cpu"
) -> Encoder:
    """`load`, where only an encoder will do."""
    model = load(path, dtype=dtype, device=device)
    if not isinstance(model, Encoder):
        raise ConfigError(f'{path}: "{model.config.family}" is not an encoder', hint="use a model such as BERT")
    return model


def _keep_quantized(path: Path, model: Decoder, checkpoint: GGUFCheckpoint, *, packed: bool) -> set[str]:
    """Hand quantised weights to the projections that can hold them; returns the names that are thereby loaded."""
    pieces = checkpoint_pieces(model)
    loaded: set[str] = set()
    to_pack: list[tuple[Linear | Embedding, list[BlockWeight]]] = []
    for name, module in model.named_modules():
        if not isinstance(module, Linear):
            continue
        own = pieces.get(f"{name}.weight") or pieces["embedding.weight"]  # a tied head reads the embedding
        found = {theirs: checkpoint.blocks(theirs) for theirs in own}
        for theirs, blocks in found.items():
            if blocks is not None:
                check_shape(path, theirs, blocks.shape, own[theirs].shape)
        whole = [blocks for blocks in found.values() if blocks is not None]
        if len(whole) < len(found):
            continue
        if packed and all(map(layout_of, whole)):
            to_pack.append((module, whole))
        elif (stacked := BlockWeight.stack(whole)) is not None:
            module.hold_blocks(stacked)
        else:
            continue
        if f"{name}.weight" in pieces:
            loaded |= own.keys()
    embedding = checkpoint.blocks(*pieces["embedding.weight"])
    if packed and embedding is not None and layout_of(embedding):
        loaded |= pieces["embedding.weight"].keys()
        if not model.config.tie_embeddings:
            to_pack.append((model.embedding, [embedding]))
    memory = arena(sum(PackedWeight.size(blocks) for _, blocks in to_pack))
    start = 0
    for module, blocks in to_pack:
        end = start + PackedWeight.size(blocks)
        weight = PackedWeight.of(blocks, memory[start:end])
        if isinstance(module, Embedding):
            module.hold_packed(*weight.matrices)
        else:
            module.hold_blocks(weight)
        if module is model.head and model.config.tie_embeddings:
            model.embedding.hold_packed(*weight.matrices)
        start = end
    return loaded


def _hold_quantized(
    path: Path, model: Decoder, checkpoint: FolderCheckpoint, device: torch.device, on_kernels: bool, *, packed: bool
) -> None:
    """Hand the weights that a folder holds quantised to their projections and experts."""
    pieces = checkpoint_pieces(model)

    def held(views: dict[str, Tensor]) -> Multiplies | None:
        """The weights of these names below each other, if all are quantised."""
        found = {name: weight for name in views if (weight := checkpoint.blocks(name)) is not None}
        for name, weight in found.items():
            shape = views[name].T.shape if is_transposed(views[name]) else views[name].shape
            check_shape(path, name, weight.shape, shape)
        if len(found) < len(views):
            return None
        weights = [weight.to(device) for weight in found.values()]
        if packed and on_kernels and all(map(layout_of, weights)):
            return PackedWeight.of(weights, arena(PackedWeight.size(weights)))
        return stack(weights, on_kernels=on_kernels)

    for name, module in model.named_modules():
        if not isinstance(module, Linear | GroupedLinear) or not (views := pieces.get(f"{name}.weight")):
            continue
        if isinstance(module, Linear):
            if (whole := held(views)) is not None:
                module.hold_blocks(whole)
        elif all(view.ndim == 2 for view in views.values()):
            each = len(views) // len(module.weight)
            parts = (dict([*views.items()][start : start + each]) for start in range(0, len(views), each))
            experts = [held(part) for part in parts]
            if not any(expert is None for expert in experts):
                module.hold_blocks(cast(list[Multiplies], experts))


def read_as(path: Path, checkpoint: Checkpoint, name: str, view: Tensor) -> Tensor:
    """A tensor of the checkpoint, for this view of the model's weights."""
    tensor = checkpoint.tensor(name)
    if name in checkpoint.linears and is_transposed(view):
        tensor = tensor.T
    check_shape(path, name, tensor.shape, view.shape)
    return tensor


def is_transposed(view: Tensor) -> bool:
    """Whether the architecture's checkpoints keep this weight ``(in, out)``."""
    return view.ndim == 2 and view.stride(0) == 1 and view.stride(1) != 1


def check_shape(path: Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(found) != tuple(wanted):
        raise ModelFileError(
            f'{path}: tensor "{name}" has shape {tuple(found)}, but the config makes it {tuple(wanted)}'
        )


class Checkpoint(Protocol):
    """An opened model file or folder."""

    config: ModelConfig

    @property
    def names(self) -> Collection[str]:
        """The tensors that are there, by Hugging Face name."""
        ...

    def tensor(self, name: str) -> Tensor: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def part(self, name: str, cut: Cut) -> Tensor:
        """What is kept of a tensor, read without the rest where the file allows that."""
        ...

    @property
    def linears(self) -> Collection[str]:
        """Of these, weights of projections that are read ``(out, in)`` whatever the architecture's order is."""
        ...

    def blocks(self, name: str) -> BlockWeight | QuantizedWeight | None:
        """The tensor as it is stored, if it is quantised; from a GGUF file, if `wootz.kernels` can compute with it."""
        ...


def open_checkpoint(path: Path) -> Checkpoint:
    if not path.exists():
        raise NotFoundError(f"{path}: no such model file or folder")
    if path.is_dir():
        return FolderCheckpoint(path)
    if path.suffix == ".gguf":
        return GGUFCheckpoint(path)
    raise ModelFileError(f"{path}: neither a model folder nor a .gguf file")


def check_names(path: Path, model: Decoder, wanted: Collection[str], found: Collection[str]) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise ModelFileError(f"{path}: lacks {_enumerate(missing)}; the file is incomplete or of another architecture")
    is_ignored = ignored_names(model)
    unknown = [name for name in found if name not in wanted and not is_ignored(name)]
    if unknown:
        raise ModelFileError(f"{path}: holds {_enumerate(unknown)}, which this architecture does not have")


def ignored_names(model: Decoder) -> Callable[[str], bool]:
    """Weights we would ignore mean a model that we would compute wrongly. Few may be ignored: a copy of the tied
    embedding, the rotary frequencies that old exports carry, and what the family says."""
    ignored = [r".*rotary_emb\.inv_freq", *family_of(model.config.family).ignored]
    if model.config.tie_embeddings:
        ignored.append(re.escape(str(family_of(model.config.family).names["head"])) + r"\.weight")
    return lambda name: any(re.fullmatch(pattern, name) for pattern in ignored)


def _enumerate(names: list[str]) -> str:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f'tensor "{names[0]}"{others}'


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f'"{dtype}" is not a dtype for weights', hint="use float32, bfloat16, float16 or float64")
    return dtype


def _device(device: torch.device | str) -> torch.device:
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f'device "{device}" cannot be used: {reason}') from None
    return device
