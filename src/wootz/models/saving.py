"""From a model to files in Hugging Face layout: `save`.

The weights are the views by which a model is also loaded (`wootz.models.names`), so what is written is named and
shaped as transformers, PEFT and vLLM expect it. A folder is there as a whole or not at all: a run that is killed while
it saves leaves the checkpoint before it as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from wootz.core.atomic import atomic_folder
from wootz.core.errors import ConfigError
from wootz.core.progress import SILENT, Progress
from wootz.models.decoder import Decoder
from wootz.models.names import checkpoint_views
from wootz.models.positions.guards import scheme_of

MAX_SHARD_BYTES = 5_000_000_000

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".distcp", ".index.json")

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
"""What a ``config.json`` calls the class, for models from GGUF files, which do not say."""


def save(
    model: Decoder,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    beside: Path | str | None = None,
    replace: bool = False,
    progress: Progress = SILENT,
) -> None:
    """Write ``config.json`` and ``*.safetensors``; with an index where one file would be above ``max_shard_bytes``.

    ``dtype`` converts the weights. ``beside`` names a model folder whose other files (tokenizer, chat template,
    generation config) come along. ``replace`` allows ``folder`` to be a model already. ``progress`` advances by bytes.

    Raises `ConfigError` when the folder holds something else or cannot be written, or when the model's weights are
    laid out for inference and no longer there to be written.
    """
    views = checkpoint_views(model)
    check_complete(model, views)
    weights = ((name, view.to("cpu", dtype)) for name, view in views.items())
    with atomic_folder(folder, replace_if="config.json" if replace else None) as partial:
        if beside is not None:
            copy_other_files(Path(beside), partial)
        write_config(partial, dict(model.config.raw), dtype or model.dtype)
        write_weights(partial, weights, max_shard_bytes=max_shard_bytes, positions=scheme_of(model), progress=progress)


def check_complete(model: Decoder, views: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        wanted = checkpoint_views(model.config.build())
    if views.keys() != wanted.keys():
        raise ConfigError(
            "the model was prepared for inference, so its weights cannot be saved", hint="load it again and save that"
        )


def write_config(folder: Path, raw: dict[str, Any], dtype: torch.dtype) -> None:
    """``config.json``, in words that transformers knows."""
    raw = {key: value for key, value in raw.items() if key not in ("dtype", "quantization_config")}
    rope = raw.get("rope_parameters")
    if isinstance(rope, dict) and rope.get("rope_type") == "frequency_factors":
        raw["rope_parameters"] = _as_longrope(rope, raw["max_position_embeddings"])
    if raw.get("eos_token_id") == []:
        raw["eos_token_id"] = None
    if raw["model_type"] == "llama" and raw.get("use_sliding_window") and raw.get("sliding_window"):
        raw["model_type"] = "mistral"  # GGUF keeps both as llama, transformers windows only the one
    if "architectures" not in raw and (name := _CLASSES.get(raw["model_type"])):
        raw = {"architectures": [name], **raw}
    raw["torch_dtype"] = str(dtype).removeprefix("torch.")  # the name that old and new readers know
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def _as_longrope(rope: dict[str, Any], context: int) -> dict[str, Any]:
    """A factor for each frequency is what LongRoPE configs hold: one list within the original context, one beyond."""
    factors = {"short_factor": rope["factors"], "long_factor": rope["factors"], "attention_factor": 1.0, "factor": 1.0}
    return {
        "rope_type": "longrope",
        "rope_theta": rope["rope_theta"],
        "original_max_position_embeddings": context,
        **factors,
    }


def write_weights(
    folder: Path,
    weights: Iterable[tuple[str, Tensor]],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    positions: str | None = None,
    progress: Progress = SILENT,
) -> None:
    """Tensors, one at a time, into as few shards as ``max_shard_bytes`` allows; holds one shard in memory.

    ``positions`` says what scheme the weights have learned, which no weight shows; loading compares it."""
    metadata = {"format": "pt"} | ({"positions": positions} if positions else {})
    shards = []
    for shard in _shards(weights, max_shard_bytes):
        file = folder / f"{len(shards)}.safetensors"
        file.touch()
        permissions = file.stat().st_mode  # safetensors would leave the file to its owner alone
        save_file(shard, file, metadata=metadata)
        file.chmod(permissions)
        shards.append((file, {name: tensor.nbytes for name, tensor in shard.items()}))
        progress.advance(sum(shards[-1][1].values()))
    if len(shards) == 1:
        shards[0][0].rename(folder / "model.safetensors")
        return
    weight_map = {}
    for number, (file, sizes) in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file.rename(folder / name)
        weight_map |= dict.fromkeys(sizes, name)
    total = sum(size for _, sizes in shards for size in sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(weights: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    yield shard


def copy_other_files(source: Path, folder: Path) -> None:
    """Everything a model folder holds besides its config and weights; no subfolders, nothing hidden."""
    for file in source.iterdir():
        hidden = file.name.startswith(".")
        if file.is_file() and not hidden and file.name != "config.json" and not file.name.endswith(_WEIGHTS):
            shutil.copyfile(file, folder / file.name)
