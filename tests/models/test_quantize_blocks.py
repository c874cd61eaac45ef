"""Quantisers against the `gguf` package (bit for bit) and, for K formats, llama.cpp's own (error for error)."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from wootz.models.dequantize import dequantize
from wootz.models.quantize_blocks import WEIGHTS_PER_BLOCK, quantize

PLAIN = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
K_FORMATS = ["Q4_K", "Q5_K", "Q6_K"]


def weights_of_all_kinds(columns: int = 512) -> torch.Tensor:
    """Bell-shaped, heavy-tailed, one-sided, tiny, constant, with ties and halves, and zero rows."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(200, columns, generator=generator) * 0.05
    rows = [
        normal,
        normal[:50].abs().neg() ** 3 * 1e3,
        normal[:50].abs() + 1,
        normal[:50] * 1e-4,
        torch.randint(-9, 10, (50, columns), generator=generator) / 2,
        torch.full((2, columns), 0.37),
        torch.zeros(2, columns),
    ]
    return torch.cat([torch.nan_to_num(part) for part in rows])


@pytest.mark.parametrize("type_name", PLAIN)
def test_plain_formats_equal_the_gguf_package(type_name: str) -> None:
    weights = weights_of_all_kinds(2048)  # more than one chunk
    expected = gguf.quants.quantize(weights.numpy(), GGMLQuantizationType[type_name])
    np.testing.assert_array_equal(quantize(weights, type_name).numpy(), np.ascontiguousarray(expected).view(np.uint8))


def llama_cpp_quantize(weights: torch.Tensor, type_name: str) -> torch.Tensor:
    xllamacpp = pytest.importorskip("xllamacpp")
    library = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("*.so"))))
    kind = GGMLQuantizationType[type_name]
    block_weights, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = weights.shape
    data = torch.zeros(rows, columns // block_weights * block_bytes, dtype=torch.uint8)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    written = library.ggml_quantize_chunk(kind, weights.data_ptr(), data.data_ptr(), 0, rows, columns, None)
    assert written == data.numel()
    return data


@pytest.mark.parametrize("type_name", K_FORMATS)
def test_k_formats_err_no_more_than_llama_cpp(type_name: str) -> None:
    weights = weights_of_all_kinds()
    ours, theirs = quantize(weights, type_name), llama_cpp_quantize(weights, type_name)
    assert ours.shape == theirs.shape
    errors = [(dequantize(data.flatten(), type_name).view_as(weights) - weights).square() for data in (ours, theirs)]
    for ours_of_kind, theirs_of_kind in zip(*(error.split(50) for error in errors), strict=True):
        assert ours_of_kind.sum() <= theirs_of_kind.sum() * 1.01 + 1e-5
    assert errors[0][:200].sum() <= errors[1][:200].sum() * 1.001  # bell-shaped, as weights are
    assert (ours[:200] == theirs[:200]).float().mean() > 0.97


@pytest.mark.parametrize("type_name", K_FORMATS)
def test_k_formats_err_less_than_the_plain_format_of_their_size(type_name: str) -> None:
    weights = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    plain = {"Q4_K": "Q4_0", "Q5_K": "Q5_0", "Q6_K": "Q5_1"}[type_name]
    errors = [
        (dequantize(quantize(weights, name).flatten(), name).view_as(weights) - weights).square().mean()
        for name in (type_name, plain)
    ]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("type_name", PLAIN)
def test_what_a_plain_format_can_hold_comes_back_as_it_was(type_name: str) -> None:
    """So converting there and back does not wear a model out."""
    once = dequantize(quantize(weights_of_all_kinds(), type_name).flatten(), type_name).view(-1, 512)
    again = dequantize(quantize(once, type_name).flatten(), type_name).view(-1, 512)
    torch.testing.assert_close(again, once, rtol=2e-3, atol=1e-6)


def test_any_float_dtype_and_shape() -> None:
    weights = torch.randn(3, 2, 256).bfloat16()
    for type_name, count in WEIGHTS_PER_BLOCK.items():
        data = quantize(weights, type_name)
        assert data.shape[:-1] == weights.shape[:-1]
        torch.testing.assert_close(data, quantize(weights.float(), type_name))
        if count > 1:
            with pytest.raises(ValueError, match="blocks"):
                quantize(weights[..., :-1], type_name)
