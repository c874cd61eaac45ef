"""CPU kernels: what PyTorch has no fast operation for, in C++ (`kernels.cpp`; for training: `kernels.training`).

- `linear`: a few tokens times a weight that stays in its GGUF block format, activations as they are;
- `dequantize`: such a weight in float32, for the many tokens of a prompt, which PyTorch's product serves best;
- `packed_linear`: any number of tokens, rounded to 8 bits, times a weight that was packed for it (`kernels.packing`);
- `attend`: causal attention over paged keys and values, in place;
- `Stack`: all layers of a decoder in one call, and what is before and behind them;
- `draw`: a token by chance from each row of logits.

They are optional: without a compiler at installation `AVAILABLE` is False, and callers keep to PyTorch, which is also
what the kernels are tested against. PyTorch is imported first, so that both share one OpenMP runtime and its threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from wootz.kernels.packing import PackedMatrix

try:
    from wootz.kernels import _native
except ImportError:
    _native = None

AVAILABLE = _native is not None

MULTIPLIES_BYTES = _native is not None and _native.instruction_sets()[0] != "baseline"
"""Whether products of bytes are faster here than products of floats."""

FORMATS = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8}
"""The block formats the kernels know, with GGML's numbers."""

BLOCK_WEIGHTS = 32
"""Weights per block, in all of them."""

HEAD_MULTIPLE = 32
"""Head dimensions must be a multiple of it: two of the widest vectors, and a block of rounded numbers."""

ACTIVATIONS = {"silu": 0, "swish": 0, "gelu_pytorch_tanh": 1, "gelu_new": 1}
"""What a `Stack` can put between an MLP's products."""

_Matrix = tuple[int, int, int, int, int]


def instruction_sets() -> list[str]:
    """The builds this processor can run, the one in use first unless `use` chose another."""
    return _native.instruction_sets() if _native is not None else []


def use(instruction_set: str) -> None:
    """Switch to another build, for tests."""
    assert _native is not None
    _native.use(instruction_set)


def linear(x_TC: Tensor, weight: Tensor, format: str) -> Tensor:
    """``(T, R)`` float32: ``x`` times the transposed weight; that has R rows, each a run of ``format`` blocks (uint8).

    A token's result is the same to the last bit whatever other tokens there are.
    """
    assert _native is not None
    x_TC = x_TC.contiguous()
    num_tokens, num_columns = x_TC.shape
    y_TR = x_TC.new_empty(num_tokens, len(weight))
    if num_tokens == 0:  # A step of nothing but first chunks of long prompts asks for no logits.
        return y_TR
    _native.linear(
        FORMATS[format],
        weight.data_ptr(),
        x_TC.data_ptr(),
        y_TR.data_ptr(),
        len(weight),
        num_columns,
        num_tokens,
        torch.get_num_threads(),
    )
    return y_TR


def dequantize(weight: Tensor, format: str, num_columns: int) -> Tensor:
    """The weight in float32, ``(R, C)``."""
    assert _native is not None
    out_RC = torch.empty(len(weight), num_columns)
    _native.dequantize(
        FORMATS[format], weight.data_ptr(), out_RC.data_ptr(), len(weight), num_columns, torch.get_num_threads()
    )
    return out_RC


def lanes() -> int:
    """Rows that a packed weight interleaves: the numbers in a vector of the build in use."""
    assert _native is not None
    return _native.lanes()


def packed_linear(x_TC: Tensor, weight: PackedMatrix) -> Tensor:
    """``(T, R)`` float32: ``x``, each token rounded to 8 bits in blocks of 32, times the transposed weight.

    A token's result is the same to the last bit whatever other tokens there are.
    """
    assert _native is not None
    x_TC = x_TC.contiguous()
    y_TR = x_TC.new_empty(len(x_TC), weight.rows)
    if len(x_TC):
        _native.packed_linear(
            matrix(weight), x_TC.data_ptr(), y_TR.data_ptr(), weight.rows, len(x_TC), torch.get_num_threads()
        )
    return y_TR


def unpacked_rows(weight: PackedMatrix, rows_N: Tensor) -> Tensor:
    """Rows of a packed weight (int64 numbers) in float32, ``(N, C)``."""
    assert _native is not None
    rows_N = rows_N.contiguous()
    out_NC = torch.empty(len(rows_N), weight.columns)
    _native.unpacked_rows(matrix(weight), rows_N.data_ptr(), len(rows_N), out_NC.data_ptr())
    return out_NC


def matrix(weight: PackedMatrix, bias: Tensor | None = None) -> _Matrix:
    """A packed weight as the native side takes it. Only addresses go over: both tensors have to be kept."""
    from wootz.kernels.packing import LAYOUTS

    number = LAYOUTS[weight.layout].number
    address = 0 if bias is None else bias.data_ptr()
    return number, weight.data.data_ptr(), weight.padded_rows, weight.columns, address


def can_attend(cache: Tensor) -> bool:
    """Whether `attend` can read this layer's cache."""
    right_kind = cache.is_cpu and cache.dtype in (torch.float32, torch.float16)
    return AVAILABLE and right_kind and cache.shape[-1] % HEAD_MULTIPLE == 0


@dataclass(frozen=True)
class Chunks:
    """Which tokens of a step belong together: ``row, tokens, start`` of each chunk, and its sequence's blocks."""

    entries: list[tuple[int, int, int, int]]
    """The last is the address of the chunk's row of ``tables``."""
    tables: Tensor

    @classmethod
    def of(cls, rows: list[tuple[int, int, int]], tables_SN: Tensor) -> Chunks:
        step = tables_SN.stride(0) * tables_SN.element_size()
        start = tables_SN.data_ptr()
        return cls([(*row, start + i * step) for i, row in enumerate(rows)], tables_SN)


def attend(
    cache: Tensor, q_THd: Tensor, out_THd: Tensor, chunks: Chunks, *, scale: float, window: int | None = None
) -> None:
    """Fill the chunks' rows of ``out`` with causal attention over what their sequences have in the cache.

    ``cache`` is ``(num_blocks, block_size, 2, K, d)``, float32 or float16, and holds the chunks' own keys and values
    already. Queries and outputs are float32.
    """
    assert _native is not None
    assert out_THd.is_contiguous()
    q_THd = q_THd.contiguous()
    _native.attend(
        cache_view(cache),
        chunks.entries,
        q_THd.data_ptr(),
        out_THd.data_ptr(),
        q_THd.shape[1],
        scale,
        window or 0,
        torch.get_num_threads(),
    )


def can_draw(logits_SV: Tensor) -> bool:
    """Whether `draw` can read these."""
    return AVAILABLE and logits_SV.is_cpu and logits_SV.dtype == torch.float32


def draw(logits_SV: Tensor, how: list[tuple[float, int, float, float, float]]) -> list[int]:
    """A token for each row: ``how`` has its temperature (above 0), top_k, top_p, min_p, and the place in the
    distribution that these leave, in [0, 1)."""
    assert _native is not None
    logits_SV = logits_SV.contiguous()
    return _native.draw(logits_SV.data_ptr(), logits_SV.shape[1], how, torch.get_num_threads())


def cache_view(cache: Tensor) -> tuple[int, int, int, int, bool]:
    return cache.data_ptr(), cache.shape[1], cache.shape[3], cache.shape[4], cache.dtype == torch.float16


class Stack:
    """The layers of a decoder, to be run in one call. It keeps addresses, and so what they belong to in ``kept``."""

    def __init__(self) -> None:
        assert _native is not None
        self._native = _native.Stack()
        self.kept: list[object] = []

    def add(
        self,
        norms: Sequence[tuple[Tensor | None, float]],
        matrices: Sequence[tuple[PackedMatrix, Tensor | None]],
        cache: Tensor,
        *,
        num_heads: int,
        window: int | None,
        angles: tuple[Tensor, Tensor],
        scale: float,
        activation: str,
    ) -> None:
        """One more layer. ``norms``: before and after attention, before and after the MLP, of queries, of keys.
        ``matrices``, each with its bias: q, k, v, output, gate, up, down. ``angles``: cosines and signed sines of all
        positions, ``(positions, dim)`` in float32."""
        self.kept += [norms, matrices, cache, angles]
        self._native.add(
            [(0 if weight is None else weight.data_ptr(), eps) for weight, eps in norms],
            [matrix(*pair) for pair in matrices],
            cache_view(cache),
            num_heads,
            window or 0,
            (angles[0].data_ptr(), angles[1].data_ptr(), angles[0].shape[-1]),
            scale,
            ACTIVATIONS[activation],
        )

    def run(self, x_TD: Tensor, chunks: Chunks, last_norm: tuple[Tensor, float]) -> None:
        """All layers and the last norm, over the residual stream ``x``, which is changed in place."""
        norm = last_norm[0].data_ptr(), last_norm[1]
        num_tokens, hidden_size = x_TD.shape
        threads = torch.get_num_threads()
        self._native.run(x_TD.data_ptr(), num_tokens, hidden_size, chunks.entries, norm, threads)

    def set_ends(
        self, last_norm: tuple[Tensor, float], embedding: PackedMatrix, head: PackedMatrix, scale: float
    ) -> None:
        """What is before and behind the layers, for `whole`: vectors of ``embedding`` are multiplied by ``scale``."""
        self.kept += [last_norm, embedding, head]
        self._native.set_ends((last_norm[0].data_ptr(), last_norm[1]), matrix(embedding), matrix(head), scale)

    def whole(
        self, token_ids: list[int], chunks: list[tuple[int, int, int, list[int]]], rows: list[int], logits_SV: Tensor
    ) -> list[int]:
        """From a step's tokens to the logits of some of its ``rows``, into ``logits``; returns the likeliest token of
        each. ``chunks`` are row, tokens, start and the sequence's blocks."""
        _, vocab_size = logits_SV.shape
        threads = torch.get_num_threads()
        return self._native.whole(token_ids, chunks, rows, logits_SV.data_ptr(), vocab_size, threads)
