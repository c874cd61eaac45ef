"""GGUF files as a checkpoint in Hugging Face names and layout.

Two things differ inside. llama.cpp turns neighbouring dimensions of a head together, so for its ``llama``
architecture the rows of queries and keys were reordered when the file was written; we put them back. And a file says
how positions are stretched by a tensor of frequency factors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wootz.core.errors import ModelFileError
from wootz.core.gguf import GGUFFile
from wootz.models import families
from wootz.models.block_weight import BlockWeight
from wootz.models.dequantize import dequantize
from wootz.models.families import ModelConfig
from wootz.models.packed_weight import GGUF_PARTS

_ROPE_FACTORS = "rope_freqs.weight"

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}
"""Their modules to those of a Hugging Face checkpoint; ``{i}`` is the layer's number."""

_SANDWICH = {
    "blk.{i}.post_attention_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "blk.{i}.post_ffw_norm": "model.layers.{i}.post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp keeps one kind of model."""

    model_type: str
    """The Hugging Face name of the same."""
    names: dict[str, str] = field(default_factory=lambda: NAMES)
    interleaved: bool = False
    """Queries and keys are in the order in which neighbouring dimensions turn together."""
    norm_offset: float = 0.0
    """Norm weights were written with this added."""
    raw: dict[str, Any] = field(default_factory=dict)
    """What the config of the same in Hugging Face layout says, and the metadata does not."""


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma3": Architecture(
        "gemma3_text", NAMES | _SANDWICH, norm_offset=1.0, raw={"hidden_activation": "gelu_pytorch_tanh"}
    ),
}


class GGUFCheckpoint:
    """A GGUF file's config and tensors, dequantised to float32 when asked."""

    def __init__(self, path: Path) -> None:
        self._file = GGUFFile(path)
        try:
            self._architecture = self._find_architecture()
            self._gguf_names = {
                self._checkpoint_name(name): name for name in self._file.tensors if name != _ROPE_FACTORS
            }
            self.names = self._gguf_names.keys()
            self.raw = self._read_raw()
            self.config: ModelConfig = families.read_config(self.raw)
        except KeyError as error:
            raise ModelFileError(f'{path}: the metadata lacks "{error.args[0]}"') from None
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ModelFileError(f"{path}: {error}") from None

    def tensor(self, name: str) -> Tensor:
        return self._in_our_order(name, self._read(self._gguf_names[name]))

    @property
    def linears(self) -> tuple[str, ...]:
        """None: GGUF is for architectures whose order is the usual one."""
        return ()

    def blocks(self, name: str) -> BlockWeight | None:
        info = self._file.tensors[self._gguf_names[name]]
        if info.type not in GGUF_PARTS or len(info.shape) != 2:
            return None
        rows, columns = info.shape
        data = self._bytes(self._gguf_names[name]).view(rows, -1)
        return BlockWeight(self._in_our_order(name, data), info.type, (rows, columns))

    def _in_our_order(self, name: str, tensor: Tensor) -> Tensor:
        """Rows as Hugging Face has them, be they numbers or blocks."""
        if self._architecture.interleaved and ".self_attn." in name:
            if ".q_proj." in name:
                return to_rotate_half(tensor, self.raw["num_attention_heads"])
            if ".k_proj." in name:
                return to_rotate_half(tensor, self.raw["num_key_value_heads"])
        if self._architecture.norm_offset and name.endswith("norm.weight"):
            return tensor - self._architecture.norm_offset
        return tensor

    def _read(self, name: str) -> Tensor:
        info = self._file.tensors[name]
        return dequantize(self._bytes(name), info.type).view(info.shape)

    def _bytes(self, name: str) -> Tensor:
        return torch.frombuffer(self._file.bytes_of(name), dtype=torch.uint8)

    def _find_architecture(self) -> Architecture:
        name = self._file.metadata["general.architecture"]
        if name not in ARCHITECTURES:
            raise ValueError(f'architecture "{name}" is not supported in GGUF ({", ".join(ARCHITECTURES)} are)')
        return ARCHITECTURES[name]

    def _read_raw(self) -> dict[str, Any]:
        """The metadata as the ``config.json`` of the same model."""
        metadata = self._file.metadata
        own = _Section(metadata, metadata["general.architecture"])
        num_heads, hidden_size = own["attention.head_count"], own["embedding_length"]
        head_dim = own.get("attention.key_length", hidden_size // num_heads)
        end = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")]
        window = own.get("attention.sliding_window")
        # Not in the file: llama.cpp knows the one Gemma 3 (27B) that does not scale its scores by the head's size.
        query_scalar = hidden_size // num_heads if own["block_count"] == 62 else head_dim
        return {
            "model_type": self._architecture.model_type,
            "vocab_size": self._file.tensors["token_embd.weight"].shape[0],
            "hidden_size": hidden_size,
            "intermediate_size": own["feed_forward_length"],
            "num_hidden_layers": own["block_count"],
            "num_attention_heads": num_heads,
            "num_key_value_heads": own.get("attention.head_count_kv", num_heads),
            "head_dim": head_dim,
            "max_position_embeddings": own["context_length"],
            "sliding_window": window,
            "use_sliding_window": window is not None,
            "rms_norm_eps": own["attention.layer_norm_rms_epsilon"],
            "rope_parameters": self._rope_parameters(own, head_dim),
            "tie_word_embeddings": "lm_head.weight" not in self.names,
            "attention_bias": "model.layers.0.self_attn.o_proj.bias" in self.names,
            "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in self.names,
            "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": list(dict.fromkeys(token for token in end if token is not None)),
            **self._architecture.raw,
            **({"query_pre_attn_scalar": query_scalar} if self._architecture.model_type == "gemma3_text" else {}),
        }

    def _rope_parameters(self, own: _Section, head_dim: int) -> dict[str, Any]:
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": own.get("rope.freq_base", 10_000.0)}
        if own.get("rope.dimension_count", head_dim) != head_dim:
            raise ValueError("rotary positions on a part of each head are not supported")
        kind = own.get("rope.scaling.type", "none")
        if _ROPE_FACTORS in self._file.tensors:
            rope |= {"rope_type": "frequency_factors", "factors": self._read(_ROPE_FACTORS).tolist()}
        elif kind == "linear":
            rope |= {"rope_type": "linear", "factor": own["rope.scaling.factor"]}
        elif kind != "none":
            raise ValueError(f'rotary scaling "{kind}" is not supported (none and linear are)')
        return rope

    def _checkpoint_name(self, name: str) -> str:
        """``blk.3.attn_q.weight`` to ``model.layers.3.self_attn.q_proj.weight``; what we do not know stays as it is."""
        number = re.match(r"blk\.(\d+)\.", name)
        pattern = name.replace(number[1], "{i}", 1) if number else name
        module, _, leaf = pattern.rpartition(".")
        if module not in self._architecture.names:
            return name
        theirs = f"{self._architecture.names[module]}.{leaf}"
        return theirs.replace("{i}", number[1]) if number else theirs


class _Section(dict[str, Any]):
    """The metadata under one prefix; what it lacks is named in full."""

    def __init__(self, metadata: dict[str, Any], prefix: str) -> None:
        super().__init__((key.removeprefix(f"{prefix}."), value) for key, value in metadata.items())
        self.prefix = prefix

    def __missing__(self, key: str) -> Any:
        raise KeyError(f"{self.prefix}.{key}")


def to_rotate_half(rows: Tensor, num_heads: int) -> Tensor:
    """Within each head: rows 0, 2, 4, … first, then 1, 3, 5, …."""
    return rows.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
