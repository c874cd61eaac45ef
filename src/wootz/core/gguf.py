"""The GGUF container: metadata and where each tensor's bytes lie. Reads nothing into memory that is not asked for.

GGUF is llama.cpp's one-file model format: a header, typed key-value metadata (hyperparameters and the whole
tokenizer), a table of tensors, then their data. The `gguf` package reads it too, but takes two seconds over a
vocabulary of 50,000 tokens where this takes a tenth of one, and it needs NumPy, which a machine that only lists
its models lacks. Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from wootz.core.errors import ModelFileError, NotFoundError

GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
    39: ("MXFP4", 32, 17),
}
"""The tensor types we read: number in the file -> (name, weights per block, bytes per block)."""

_SCALARS = ("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")
_STRING, _ARRAY = 8, 9
_MAX_NESTING = 4


@dataclass(frozen=True)
class GGUFTensor:
    """One entry of the tensor table. ``shape`` is row-major, as PyTorch has it (the file stores it reversed)."""

    shape: tuple[int, ...]
    type: str
    offset: int
    num_bytes: int


class GGUFFile:
    """An opened GGUF file: ``metadata``, ``tensors`` and their bytes. Damage is a `ModelFileError`.

    The first of several files that one model was split into (``…-00001-of-00003.gguf``) opens as the whole model.
    """

    metadata: dict[str, Any]
    """By key, e.g. ``llama.block_count``. Strings, numbers, booleans, and lists of these."""
    tensors: dict[str, GGUFTensor]

    def __init__(self, path: Path | str, *, _is_part: bool = False) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                # Copy-on-write only because PyTorch warns of buffers that it may not write to.
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise NotFoundError(f"{self.path}: no such file") from None
        except (ValueError, OSError) as error:  # mmap refuses an empty file with ValueError
            raise ModelFileError(f"{self.path}: cannot be read as GGUF ({error})") from None
        self._position = 0
        try:
            self._read_header()
        except (struct.error, _DamagedError):
            raise ModelFileError(f"{self.path}: the GGUF file is cut short or damaged", hint="fetch it again") from None
        self._pages = dict.fromkeys(self.tensors, self._data)
        if not _is_part:
            self._join_parts()

    def bytes_of(self, name: str) -> memoryview:
        """The tensor's bytes, straight from the file's pages."""
        tensor = self.tensors[name]
        return memoryview(self._pages[name])[tensor.offset : tensor.offset + tensor.num_bytes]

    def _join_parts(self) -> None:
        """The tensors of the parts beside this one, if the model was split; the metadata is all in the first."""
        number, count = (self.metadata.pop(key, default) for key, default in (("split.no", 0), ("split.count", 1)))
        self.metadata.pop("split.tensors.count", None)
        if count == 1:
            return
        part = re.fullmatch(r"(.*)-\d{5}-of-\d{5}", self.path.stem)
        if part is None or not isinstance(number, int) or not isinstance(count, int):
            raise ModelFileError(f"{self.path}: a part of a split GGUF, but not named like one")
        if number != 0:
            first = f"{part[1]}-00001-of-{count:05}.gguf"
            raise ModelFileError(f"{self.path}: one part of a split GGUF", hint=f"give its first part, {first}")
        for n in range(2, count + 1):
            file = self.path.with_name(f"{part[1]}-{n:05}-of-{count:05}.gguf")
            if not file.exists():
                raise ModelFileError(f"{file}: this part of a split GGUF is missing", hint="fetch the model again")
            other = GGUFFile(file, _is_part=True)
            self.tensors |= other.tensors
            self._pages |= other._pages

    def _read_header(self) -> None:
        if self._data[:4] != b"GGUF":
            raise ModelFileError(f"{self.path}: not a GGUF file (it does not begin with the letters GGUF)")
        self._position = 4
        (version,) = self._unpack("I")
        if version not in (2, 3):
            raise ModelFileError(f"{self.path}: GGUF version {version}; little-endian versions 2 and 3 are supported")
        num_tensors, num_pairs = self._unpack("QQ")
        self.metadata = {}
        for _ in range(num_pairs):
            key = self._string()
            self.metadata[key] = self._value(*self._unpack("I"))
        table = [self._tensor_info() for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise _DamagedError
        data_start = -(-self._position // alignment) * alignment
        self.tensors = {name: self._locate(name, shape, kind, data_start + at) for name, shape, kind, at in table}

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (num_dimensions,) = self._unpack("I")
        shape = self._unpack(f"{num_dimensions}Q")[::-1]
        kind, offset = self._unpack("IQ")
        return name, shape, kind, offset

    def _locate(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GGUFTensor:
        if kind not in GGML_TYPES:
            known = ", ".join(known for known, _, _ in GGML_TYPES.values())
            raise ModelFileError(f'{self.path}: tensor "{name}" is of GGML type {kind}; supported are {known}')
        type_name, block_weights, block_bytes = GGML_TYPES[kind]
        num_bytes = prod(shape) // block_weights * block_bytes
        if not shape or shape[-1] % block_weights or offset + num_bytes > len(self._data):
            raise _DamagedError
        return GGUFTensor(shape, type_name, offset, num_bytes)

    def _value(self, kind: int, nesting: int = 0) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            item_kind, count = self._unpack("IQ")
            if item_kind < len(_SCALARS) and (letter := _SCALARS[item_kind]):
                return list(self._unpack(f"{count}{letter}"))
            if nesting == _MAX_NESTING:
                raise _DamagedError
            return [self._value(item_kind, nesting + 1) for _ in range(count)]
        if kind < len(_SCALARS) and (letter := _SCALARS[kind]):
            return self._unpack(letter)[0]
        raise _DamagedError

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        start = self._position
        self._position += length
        if self._position > len(self._data):
            raise _DamagedError
        return self._data[start : self._position].decode("utf-8", errors="replace")

    def _unpack(self, letters: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{letters}", self._data, self._position)
        self._position += struct.calcsize(f"<{letters}")
        return values


class _DamagedError(Exception):
    """Something points outside the file, or is of no known kind."""
