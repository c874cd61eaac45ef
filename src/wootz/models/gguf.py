"""GGUF files as a checkpoint in Hugging Face names and layout.

Two things differ inside. llama.cpp turns neighbouring dimensions of a head together, so for its ``llama``
architecture the rows of queries and keys were reordered when the file was written; we put them back. And a file says
how positions are stretched by a tensor of frequency factors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wootz.core.errors import ModelFileError
from wootz.core.gguf import GGUFFile
from wootz.kernels import FORMATS
from wootz.models.block_weight import BlockWeight
from wootz.models.dequantize import dequantize
from wootz.models.llama import LlamaConfig
from wootz.models.rotary import FrequencyFactors, LinearScaling, RopeScaling

_FAMILIES = ("llama", "qwen2", "qwen3")
_ROPE_FACTORS = "rope_freqs.weight"

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GGUFCheckpoint:
    """A GGUF file's config and tensors, dequantised to float32 when asked."""

    def __init__(self, path: Path) -> None:
        self._file = GGUFFile(path)
        self._gguf_names = {_checkpoint_name(name): name for name in self._file.tensors if name != _ROPE_FACTORS}
        self.names = self._gguf_names.keys()
        try:
            self.config = self._read_config()
        except KeyError as error:
            raise ModelFileError(f'{path}: the metadata lacks "{error.args[0]}"') from None
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ModelFileError(f"{path}: {error}") from None

    def tensor(self, name: str) -> Tensor:
        return self._in_our_order(name, self._read(self._gguf_names[name]))

    def blocks(self, name: str) -> BlockWeight | None:
        info = self._file.tensors[self._gguf_names[name]]
        if info.type not in FORMATS or len(info.shape) != 2:
            return None
        rows, columns = info.shape
        data = self._bytes(self._gguf_names[name]).view(rows, -1)
        return BlockWeight(self._in_our_order(name, data), info.type, (rows, columns))

    def _in_our_order(self, name: str, tensor: Tensor) -> Tensor:
        """Rows as Hugging Face has them, be they numbers or blocks."""
        if self.config.family == "llama" and ".self_attn." in name:
            if ".q_proj." in name:
                return _to_rotate_half(tensor, self.config.num_heads)
            if ".k_proj." in name:
                return _to_rotate_half(tensor, self.config.num_kv_heads)
        return tensor

    def _read(self, name: str) -> Tensor:
        info = self._file.tensors[name]
        return dequantize(self._bytes(name), info.type).view(info.shape)

    def _bytes(self, name: str) -> Tensor:
        return torch.frombuffer(self._file.bytes_of(name), dtype=torch.uint8)

    def _read_config(self) -> LlamaConfig:
        metadata = self._file.metadata
        family = metadata["general.architecture"]
        if family not in _FAMILIES:
            raise ValueError(f'architecture "{family}" is not supported in GGUF ({", ".join(_FAMILIES)} are)')
        if metadata.get("split.count", 1) > 1:
            raise ValueError("one of several parts of a split GGUF; merge them with llama-gguf-split --merge")
        own = {key.removeprefix(f"{family}."): value for key, value in metadata.items()}

        def required(key: str) -> Any:
            if key not in own:
                raise KeyError(f"{family}.{key}")
            return own[key]

        num_heads, hidden_size = required("attention.head_count"), required("embedding_length")
        head_dim = own.get("attention.key_length", hidden_size // num_heads)
        context_length = required("context_length")
        end = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")]
        return LlamaConfig(
            family=family,
            vocab_size=self._file.tensors["token_embd.weight"].shape[0],
            hidden_size=hidden_size,
            intermediate_size=required("feed_forward_length"),
            num_layers=required("block_count"),
            num_heads=num_heads,
            num_kv_heads=own.get("attention.head_count_kv", num_heads),
            head_dim=head_dim,
            # Within its window a windowed model's attention is full attention; beyond it we do not go.
            max_position_embeddings=min(context_length, own.get("attention.sliding_window") or context_length),
            rms_norm_eps=required("attention.layer_norm_rms_epsilon"),
            rope_theta=own.get("rope.freq_base", 10_000.0),
            rope_scaling=self._rope_scaling(own, head_dim),
            tie_embeddings="lm_head.weight" not in self.names,
            qkv_bias="model.layers.0.self_attn.q_proj.bias" in self.names,
            output_bias="model.layers.0.self_attn.o_proj.bias" in self.names,
            mlp_bias="model.layers.0.mlp.gate_proj.bias" in self.names,
            qk_norm="model.layers.0.self_attn.q_norm.weight" in self.names,
            bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
            eos_token_ids=tuple(dict.fromkeys(token for token in end if token is not None)),
        )

    def _rope_scaling(self, own: dict[str, Any], head_dim: int) -> RopeScaling | None:
        if own.get("rope.dimension_count", head_dim) != head_dim:
            raise ValueError("rotary positions on a part of each head are not supported")
        if _ROPE_FACTORS in self._file.tensors:
            return FrequencyFactors(tuple(self._read(_ROPE_FACTORS).tolist()))
        kind = own.get("rope.scaling.type", "none")
        if kind == "linear":
            return LinearScaling(own["rope.scaling.factor"])
        if kind != "none":
            raise ValueError(f'rotary scaling "{kind}" is not supported (none and linear are)')
        return None


def _checkpoint_name(name: str) -> str:
    """``blk.3.attn_q.weight`` to ``model.layers.3.self_attn.q_proj.weight``; what we do not know stays as it is."""
    prefix, stem = "", name
    if name.startswith("blk."):
        _, index, stem = name.split(".", 2)
        prefix = f"model.layers.{index}."
    module, _, leaf = stem.rpartition(".")
    return f"{prefix}{_NAMES[module]}.{leaf}" if module in _NAMES else name


def _to_rotate_half(rows: Tensor, num_heads: int) -> Tensor:
    """Within each head: rows 0, 2, 4, … first, then 1, 3, 5, …."""
    return rows.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
