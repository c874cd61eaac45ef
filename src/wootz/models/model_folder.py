"""Model folders in Hugging Face layout: ``config.json`` and ``*.safetensors``, possibly in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from wootz.core.errors import ModelFileError
from wootz.models.llama import LlamaConfig
from wootz.models.rotary import LinearScaling, Llama3Scaling, RopeScaling


class FolderCheckpoint:
    """A folder's config and tensors. Shards are opened (memory-mapped) at once and read when asked."""

    def __init__(self, folder: Path) -> None:
        self.config = read_config(folder)
        self._shards = {file: _open_shard(file) for file in _weight_files(folder)}
        self._shard_of = {name: (file, shard) for file, shard in self._shards.items() for name in shard.keys()}  # noqa: SIM118
        self.names = self._shard_of.keys()

    def tensor(self, name: str) -> Tensor:
        file, shard = self._shard_of[name]
        try:
            return shard.get_tensor(name)
        except SafetensorError as error:
            raise ModelFileError(f"{file}: cannot read {name} ({error})") from None

    def blocks(self, name: str) -> None:
        """There are no block formats in safetensors."""


def read_config(folder: Path) -> LlamaConfig:
    """A folder's ``config.json``, with the end tokens of ``generation_config.json`` where there is one."""
    file = folder / "config.json"
    raw = _read_json(file)
    generation = folder / "generation_config.json"
    if generation.exists() and (end := _read_json(generation).get("eos_token_id")) is not None:
        raw["eos_token_id"] = end
    try:
        return _parse_config(raw)
    except KeyError as error:
        raise ModelFileError(f"{file}: lacks {error.args[0]!r}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelFileError(f"{file}: {error}") from None


def _parse_config(raw: dict[str, Any]) -> LlamaConfig:
    """Raises KeyError for what is missing and ValueError, with a message for the user, for what we cannot run."""
    family = raw.get("model_type")
    if family not in ("llama", "mistral", "qwen2", "qwen3"):
        raise ValueError(f'architecture "{family}" is not supported (llama, mistral, qwen2 and qwen3 are)')
    if (activation := raw.get("hidden_act", "silu")) != "silu":
        raise ValueError(f'activation "{activation}" is not supported (silu is)')
    if "quantization_config" in raw:
        raise ValueError("its weights are quantised in a way that is not supported; use a GGUF file")
    num_heads = raw["num_attention_heads"]
    attention_bias = raw.get("attention_bias", False)
    end = raw.get("eos_token_id")
    theta, scaling = _parse_rope(raw)
    return LlamaConfig(
        family=family,
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // num_heads,
        max_position_embeddings=min(raw["max_position_embeddings"], _window(raw)),
        rms_norm_eps=raw["rms_norm_eps"],
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings=raw.get("tie_word_embeddings", False),
        qkv_bias=family == "qwen2" or attention_bias,
        output_bias=family != "qwen2" and attention_bias,
        mlp_bias=raw.get("mlp_bias", False),
        qk_norm=family == "qwen3",
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=tuple(end) if isinstance(end, list) else () if end is None else (end,),
    )


def _window(raw: dict[str, Any]) -> float:
    """How many positions full attention and the model's sliding window agree on; beyond them we do not go."""
    used = raw["model_type"] == "mistral" or raw.get("use_sliding_window", False)
    return raw.get("sliding_window") or float("inf") if used else float("inf")


def _parse_rope(raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    # Transformers 5 writes all of it under rope_parameters; before, it was rope_theta and, if any, rope_scaling.
    rope = raw.get("rope_parameters") or {
        "rope_theta": raw.get("rope_theta", 10_000.0),
        **(raw.get("rope_scaling") or {}),
    }
    theta, kind = rope["rope_theta"], rope.get("rope_type", rope.get("type", "default"))
    match kind:
        case "default":
            return theta, None
        case "linear":
            return theta, LinearScaling(rope["factor"])
        case "llama3":
            return theta, Llama3Scaling(
                rope["factor"],
                rope["low_freq_factor"],
                rope["high_freq_factor"],
                rope["original_max_position_embeddings"],
            )
        case _:
            raise ValueError(f'rotary scaling "{kind}" is not supported (default, linear and llama3 are)')


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted({folder / shard for shard in _read_json(index)["weight_map"].values()})
    else:
        files = sorted(folder.glob("*.safetensors"))
    if missing := [file for file in files if not file.exists()]:
        raise ModelFileError(f"{missing[0]}: this shard is missing", hint="fetch the model again")
    if files:
        return files
    if pickles := [file.name for suffix in ("bin", "pt", "pth") for file in folder.glob(f"*.{suffix}")]:
        raise ModelFileError(
            f"{folder}: its weights are a pickle ({pickles[0]}), which can run code when it is opened; not supported",
            hint="use a copy in safetensors format",
        )
    raise ModelFileError(f"{folder}: no *.safetensors file in this folder")


def _open_shard(file: Path):
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
