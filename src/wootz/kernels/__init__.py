"""CPU kernels: what PyTorch has no fast operation for, in C++ (`kernels.cpp`).

- `linear`: a few tokens times a weight that stays in its GGUF block format;
- `dequantize`: such a weight in float32, for the many tokens of a prompt, which PyTorch's product serves best;
- `decode`: attention of one token per sequence over its paged keys and values.

They are optional: without a compiler at installation `AVAILABLE` is False, and callers keep to PyTorch, which is also
what the kernels are tested against. PyTorch is imported first, so that both share one OpenMP runtime and its threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from wootz.kernels import _native
except ImportError:
    _native = None

AVAILABLE = _native is not None

FORMATS = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8}
"""The block formats the kernels know, with GGML's numbers."""

BLOCK_WEIGHTS = 32
"""Weights per block, in all of them."""

WIDEST_VECTOR = 16
"""Floats; head dimensions must be a multiple of it."""


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


def can_decode(cache: Tensor) -> bool:
    """Whether `decode` can read this layer's cache."""
    return AVAILABLE and cache.is_cpu and cache.dtype == torch.float32 and cache.shape[-1] % WIDEST_VECTOR == 0


def decode(
    cache: Tensor, q_THd: Tensor, out_THd: Tensor, rows_S: Tensor, tables_SN: Tensor, lengths_S: Tensor, scale: float
) -> None:
    """Fill the rows of ``out`` that decode: ``rows[s]`` is the row of sequence s, which looks at ``lengths[s]`` tokens.

    ``cache`` is ``(num_blocks, block_size, 2, K, d)``, ``tables[s]`` the sequence's blocks (int32, as are the others).
    """
    assert _native is not None
    assert out_THd.is_contiguous()
    q_THd = q_THd.contiguous()
    _, block_size, _, num_kv_heads, head_dim = cache.shape
    num_sequences, max_blocks = tables_SN.shape
    _native.decode(
        cache.data_ptr(),
        q_THd.data_ptr(),
        out_THd.data_ptr(),
        rows_S.data_ptr(),
        tables_SN.data_ptr(),
        lengths_S.data_ptr(),
        num_sequences,
        max_blocks,
        block_size,
        num_kv_heads,
        q_THd.shape[1] // num_kv_heads,
        head_dim,
        scale,
        torch.get_num_threads(),
    )
