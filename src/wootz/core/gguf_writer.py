"""Writing GGUF files: header, metadata and tensor table first, then the tensors' bytes one after the other.

The table says where each tensor will lie before any is read, so a model that is larger than memory can be written:
`write_gguf` asks for one tensor at a time. Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from wootz.core.atomic import atomic_file
from wootz.core.gguf import GGML_TYPES
from wootz.core.progress import SILENT, Progress

_VERSION = 3
_TYPES = {name: (number, weights, num_bytes) for number, (name, weights, num_bytes) in GGML_TYPES.items()}
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64, _INT64 = 4, 5, 6, 7, 8, 9, 10, 11
_LETTERS = {_UINT32: "I", _INT32: "i", _FLOAT32: "f", _BOOL: "?", _UINT64: "Q", _INT64: "q"}


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written: row-major ``shape``, GGML ``type`` (``"Q4_K"``), and ``read``, which gives its bytes.

    ``read`` is called once, when it is the tensor's turn; it may compute (quantise) them then.
    """

    shape: tuple[int, ...]
    type: str
    read: Callable[[], bytes | bytearray | memoryview]

    @property
    def num_bytes(self) -> int:
        """Raises ValueError where rows are not whole blocks."""
        _, weights, num_bytes = _TYPES[self.type]
        if self.shape[-1] % weights:
            raise ValueError(f"rows of {self.shape[-1]} weights are not whole {self.type} blocks of {weights}")
        return prod(self.shape) // weights * num_bytes


def write_gguf(
    path: Path | str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, TensorSource],
    *,
    progress: Progress = SILENT,
) -> None:
    """Write a GGUF file, whole or not at all, replacing what was there. ``progress`` advances by bytes of tensors.

    Metadata values are strings, booleans, integers, floats, and lists of one kind. As llama.cpp expects them, integers
    are written as uint32 where they fit (int32 if negative, in lists always), and floats as float32.
    """
    alignment = metadata.get("general.alignment", 32)
    header = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, packed = _pack(value)
        header += [_pack_string(key), struct.pack("<I", kind), packed]
    offset = 0
    for name, tensor in tensors.items():
        number = _TYPES[tensor.type][0]
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        header += [_pack_string(name), dimensions, struct.pack("<IQ", number, offset)]
        offset += _round_up(tensor.num_bytes, alignment)

    with atomic_file(path) as file:
        for part in header:
            file.write(part)
        for name, tensor in tensors.items():
            file.write(bytes(-file.tell() % alignment))
            written = file.write(tensor.read())
            if written != tensor.num_bytes:
                raise ValueError(f'tensor "{name}" gave {written} bytes where its shape needs {tensor.num_bytes}')
            progress.advance(written)
        file.write(bytes(-file.tell() % alignment))


def _pack(value: Any) -> tuple[int, bytes]:
    """A value's GGUF type and its bytes. Raises TypeError for what GGUF cannot hold."""
    if isinstance(value, str):
        return _STRING, _pack_string(value)
    if isinstance(value, list | tuple):
        return _ARRAY, _pack_array(value)
    kind = _scalar_kind([value], _UINT32)
    return kind, struct.pack(f"<{_LETTERS[kind]}", value)


def _pack_array(items: Sequence[Any]) -> bytes:
    if items and all(isinstance(item, str) for item in items):
        return struct.pack("<IQ", _STRING, len(items)) + b"".join(map(_pack_string, items))
    if items and all(isinstance(item, list | tuple) for item in items):
        return struct.pack("<IQ", _ARRAY, len(items)) + b"".join(map(_pack_array, items))
    kind = _scalar_kind(items, _INT32)
    return struct.pack(f"<IQ{len(items)}{_LETTERS[kind]}", kind, len(items), *items)


def _scalar_kind(values: Sequence[Any], preferred_integer: int) -> int:
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return _BOOL
    if kinds <= {int}:
        low, high = min(values, default=0), max(values, default=0)
        ranges = {_UINT32: (0, 2**32), _INT32: (-(2**31), 2**31), _UINT64: (0, 2**64), _INT64: (-(2**63), 2**63)}
        for kind in (preferred_integer, *ranges):
            if ranges[kind][0] <= low and high < ranges[kind][1]:
                return kind
    if kinds <= {int, float}:
        return _FLOAT32
    raise TypeError(f"GGUF metadata cannot hold {values!r:.80}")


def _pack_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
