"""GGUF files as a checkpoint in Hugging Face names and layout.

Some tensors differ inside. llama.cpp turns neighbouring dimensions of a head together, so for its ``llama``
architecture the rows of queries and keys were reordered when the file was written; we put them back. All experts of a
layer lie in one tensor, of which only the asked-for one is read. The rest is in `wootz.models.gguf_architectures`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from wootz.core.errors import ModelFileError
from wootz.core.gguf import GGUFFile
from wootz.models import families
from wootz.models.block_weight import BlockWeight
from wootz.models.cut import Cut
from wootz.models.dequantize import dequantize
from wootz.models.families import ModelConfig
from wootz.models.gguf_architectures import ARCHITECTURES, ROPE_TENSORS, Made
from wootz.models.gguf_config import model_type_of, read_raw
from wootz.models.packed_weight import GGUF_PARTS


class GGUFCheckpoint:
    """A GGUF file's config and tensors, dequantised to float32 when asked."""

    def __init__(self, path: Path) -> None:
        self._file = GGUFFile(path)
        try:
            self._architecture = ARCHITECTURES[model_type_of(self._file.metadata)]
            vocab_size = self._file.tensors["token_embd.weight"].shape[0]
            self.raw = read_raw(self._file.metadata, self._file.tensors, vocab_size, self._read)
            self.config: ModelConfig = families.read_config(self.raw)
        except KeyError as error:
            raise ModelFileError(f'{path}: the metadata lacks "{error.args[0]}"') from None
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ModelFileError(f"{path}: {error}") from None
        self._whole: dict[str, str] = {}
        """Our names of tensors that are one tensor in the file, to theirs."""
        self._made: dict[str, Callable[[], Tensor]] = {}
        for name in self._file.tensors:
            if name not in ROPE_TENSORS:
                self._find(name)
        self.names = self._whole.keys() | self._made.keys()

    def tensor(self, name: str) -> Tensor:
        if name in self._made:
            return self._made[name]()
        return self._in_our_order(name, self._read(self._whole[name]))

    @property
    def linears(self) -> tuple[str, ...]:
        """None: GGUF is for architectures whose order is the usual one."""
        return ()

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self._made:
            return tuple(self.tensor(name).shape)
        return self._file.tensors[self._whole[name]].shape

    def part(self, name: str, cut: Cut) -> Tensor:
        return cut.of(self.tensor(name))

    def blocks(self, name: str) -> BlockWeight | None:
        if name not in self._whole:
            return None
        info = self._file.tensors[self._whole[name]]
        if info.type not in GGUF_PARTS or len(info.shape) != 2:
            return None
        rows, columns = info.shape
        data = self._bytes(self._whole[name]).view(rows, -1)
        return BlockWeight(self._in_our_order(name, data), info.type, (rows, columns))

    def _find(self, name: str) -> None:
        """Say of what a tensor of the file is a part. What we do not know keeps its name, and will be refused."""
        number = re.match(r"blk\.(\d+)\.", name)
        layer = number[1] if number else ""
        pattern = name.replace(f".{layer}.", ".{i}.", 1) if number else name
        module, _, leaf = pattern.rpartition(".")
        if pattern in self._architecture.experts:
            theirs = self._architecture.experts[pattern].replace("{i}", layer)
            for expert in range(self._file.tensors[name].shape[0]):
                self._made[theirs.replace("{e}", str(expert))] = partial(self._read, name, expert)
            return
        for made in self._architecture.made:
            parts = [part.replace("{i}", layer) for part in made.theirs]
            if pattern in made.theirs and all(part in self._file.tensors for part in parts):
                self._made[made.ours.replace("{i}", layer)] = partial(self._join, made, parts)
                return
        ours = self._architecture.names.get(module)
        self._whole[name if ours is None else f"{ours}.{leaf}".replace("{i}", layer)] = name

    def _join(self, made: Made, parts: list[str]) -> Tensor:
        return made.join(self.raw, *map(self._read, parts))

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

    def _read(self, name: str, expert: int | None = None) -> Tensor:
        """A tensor, or of one ``(E, …)`` an expert's part."""
        info, data, shape = self._file.tensors[name], self._bytes(name), self._file.tensors[name].shape
        if expert is not None:
            data, shape = data.view(shape[0], -1)[expert], shape[1:]
        return dequantize(data, info.type).view(shape)

    def _bytes(self, name: str) -> Tensor:
        return torch.frombuffer(self._file.bytes_of(name), dtype=torch.uint8)


def to_rotate_half(rows: Tensor, num_heads: int) -> Tensor:
    """Within each head: rows 0, 2, 4, … first, then 1, 3, 5, …."""
    return rows.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
