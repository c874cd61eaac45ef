"""A model in GGUF: the way back from `wootz.models.gguf`, so that llama.cpp runs what was made here.

Not every tensor is quantised. Vectors stay float32: they are few and all depends on them. The output matrix (or the
embedding that it is tied to) gets at least six bits, as its errors go straight into the logits. And where rows are not
whole blocks of a K format, the plain format of the next size takes its place; these are llama.cpp's own rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from wootz.core.errors import ConfigError
from wootz.core.gguf_writer import TensorSource
from wootz.models.blocks.attention import AttentionConfig
from wootz.models.decoder import DecoderConfig
from wootz.models.gguf import ARCHITECTURES, Architecture
from wootz.models.positions.rotary import RotaryConfig
from wootz.models.positions.scaling import FrequencyFactors, LinearScaling, Llama3Scaling
from wootz.models.quantize_blocks import WEIGHTS_PER_BLOCK, quantize

FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q4_K": 14,
    "Q5_K": 16,
    "Q6_K": 18,
}
"""What most matrices of a file can be, with llama.cpp's number for such a file."""

_NARROWER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What takes a K format's place in rows that are not whole blocks of 256."""

_SIX_BITS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K")
_WRITTEN_AS = {architecture.model_type: name for name, architecture in ARCHITECTURES.items()} | {"mistral": "llama"}


def gguf_metadata(config: DecoderConfig, type: str) -> dict[str, Any]:
    """Everything but the tokenizer. Raises `ConfigError` for a model that GGUF cannot hold as far as we know."""
    raw, attention = config.raw, _attention(config)
    name = _architecture_name(config)
    own = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": raw["intermediate_size"],
        "vocab_size": config.vocab_size,
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": attention.num_kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm.eps,
        "rope.dimension_count": attention.head_dim,
        "rope.freq_base": float(_global_rotary(config).theta),
    }
    if (window := _window(config)) is not None:
        own["attention.sliding_window"] = window
    if isinstance(scaling := _global_rotary(config).scaling, LinearScaling):
        own |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    metadata = {
        "general.architecture": name,
        "general.type": "model",
        "general.file_type": FILE_TYPES[type],
        "general.quantization_version": 2,
    }
    ids = dict(zip(("bos", "eos", "eot"), (config.bos_token_id, *config.eos_token_ids), strict=False))
    metadata |= {f"tokenizer.ggml.{role}_token_id": id for role, id in ids.items() if id is not None}
    return metadata | {f"{name}.{key}": value for key, value in own.items()}


def gguf_tensors(
    config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor], type: str
) -> dict[str, TensorSource]:
    """What is to be written, by GGUF name; ``shapes`` and ``read`` are by Hugging Face name.

    Each tensor is read, reordered and quantised when it is written. Raises `ConfigError` as `gguf_metadata` does.
    """
    name = _architecture_name(config)
    architecture, tied = ARCHITECTURES[name], config.tie_embeddings
    sources = {}
    for theirs, shape in shapes.items():
        ours = _gguf_name(architecture, theirs)
        kind = type_for(ours, tuple(shape), type, tied=tied)
        sources[ours] = TensorSource(tuple(shape), kind, _reader(architecture, config, theirs, read, kind))
    if (factors := _frequency_factors(name, config)) is not None:
        data = factors.numpy().tobytes()
        sources["rope_freqs.weight"] = TensorSource(tuple(factors.shape), "F32", lambda: data)
    return sources


def type_for(name: str, shape: tuple[int, ...], wanted: str, *, tied: bool = False) -> str:
    """The type of one tensor in a file whose matrices are to be ``wanted``."""
    if len(shape) < 2:
        return "F32"
    if name == ("token_embd.weight" if tied else "output.weight") and wanted in _SIX_BITS:
        wanted = "Q6_K"
    if shape[-1] % WEIGHTS_PER_BLOCK[wanted]:
        wanted = _NARROWER.get(wanted, wanted)
    return wanted if shape[-1] % WEIGHTS_PER_BLOCK[wanted] == 0 else "F16"


def _reader(
    architecture: Architecture, config: DecoderConfig, name: str, read: Callable[[str], Tensor], kind: str
) -> Callable[[], memoryview]:
    def bytes_of() -> memoryview:
        weights = _in_their_order(architecture, config, name, read(name).float())
        return quantize(weights, kind).flatten().numpy().data

    return bytes_of


def _in_their_order(architecture: Architecture, config: DecoderConfig, name: str, tensor: Tensor) -> Tensor:
    if architecture.interleaved and (part := re.search(r"\.self_attn\.([qk])_proj\.", name)):
        attention = _attention(config)
        return to_interleaved(tensor, attention.num_heads if part[1] == "q" else attention.num_kv_heads)
    if architecture.norm_offset and name.endswith("norm.weight"):
        return tensor + architecture.norm_offset
    return tensor


def to_interleaved(rows: Tensor, num_heads: int) -> Tensor:
    """Within each head: the first row of each half, then the second of each, …."""
    return rows.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _gguf_name(architecture: Architecture, name: str) -> str:
    number = re.search(r"\.(\d+)\.", name)
    pattern = name.replace(number[0], ".{i}.", 1) if number else name
    module, _, leaf = pattern.rpartition(".")
    for gguf, theirs in architecture.names.items():
        if theirs == module:
            return f"{gguf}.{leaf}".replace("{i}", number[1] if number else "")
    raise ConfigError(f'GGUF has no name for tensor "{name}" of this architecture')


def _architecture_name(config: DecoderConfig) -> str:
    if config.family not in _WRITTEN_AS:
        raise ConfigError(f'"{config.family}" models cannot be written to GGUF ({", ".join(_WRITTEN_AS)} can)')
    return _WRITTEN_AS[config.family]


def _attentions(config: DecoderConfig) -> list[AttentionConfig]:
    return [layer.mixer for layer in config.layers if isinstance(layer.mixer, AttentionConfig)]


def _attention(config: DecoderConfig) -> AttentionConfig:
    attention = _attentions(config)[0]
    large_gemma = config.family == "gemma3_text" and config.num_layers == 62  # as `wootz.models.gguf` reads it
    usual = (config.hidden_size // attention.num_heads if large_gemma else attention.head_dim) ** -0.5
    if attention.scale not in (None, usual):
        raise ConfigError("scores that are not scaled by the head's size cannot be written to GGUF")
    return attention


def _window(config: DecoderConfig) -> int | None:
    """One for all layers, except where the architecture itself says which layers are windowed."""
    windows = {attention.window for attention in _attentions(config)}
    if len(windows) > 1 and _architecture_name(config) != "gemma3":
        raise ConfigError("sliding windows in some layers only cannot be written to GGUF for this architecture")
    return max((window for window in windows if window is not None), default=None)


def _global_rotary(config: DecoderConfig) -> RotaryConfig:
    """That of the layers without a window, where the layers differ."""
    attention = min(_attentions(config), key=lambda attention: attention.window is not None)
    rotary = attention.rotary
    if rotary is None or rotary.dim != attention.head_dim:
        raise ConfigError("rotary positions on a part of each head cannot be written to GGUF")
    if not isinstance(rotary.scaling, LinearScaling | Llama3Scaling | FrequencyFactors | None):
        raise ConfigError(f"{type(rotary.scaling).__name__} of rotary positions cannot be written to GGUF")
    return rotary


def _frequency_factors(name: str, config: DecoderConfig) -> Tensor | None:
    """How much slower each frequency turns, where that is more than one factor for all."""
    rotary = _global_rotary(config)
    if rotary.scaling is None or isinstance(rotary.scaling, LinearScaling):
        return None
    if name != "llama":
        raise ConfigError(f"llama.cpp reads no factors of rotary frequencies for {name}")
    frequencies = 1.0 / rotary.theta ** (torch.arange(0, rotary.dim, 2, dtype=torch.float32) / rotary.dim)
    return frequencies / rotary.scaling.scale(frequencies)
