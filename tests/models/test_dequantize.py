"""Every block format equals the `gguf` package's, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from wootz.core.gguf import GGML_TYPES
from wootz.models.dequantize import dequantize

HALF_OFFSETS = {  # where each block keeps its float16 scales, which random bytes would make infinite or NaN
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


@pytest.mark.parametrize("type_name", HALF_OFFSETS)
def test_block_formats_equal_the_gguf_package(type_name: str) -> None:
    kind = GGMLQuantizationType[type_name]
    _, bytes_per_block = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (20_000, bytes_per_block), dtype=np.uint8)  # more than one chunk
    for offset in HALF_OFFSETS[type_name]:
        scales = random.normal(size=(len(blocks), 1)).astype(np.float16)
        blocks[:, offset : offset + 2] = scales.view(np.uint8)
    expected = gguf.quants.dequantize(blocks, kind)
    actual = dequantize(torch.from_numpy(blocks).flatten(), type_name).numpy()
    np.testing.assert_array_equal(actual.view(np.int32), expected.ravel().view(np.int32))


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_plain_formats_equal_the_gguf_package(type_name: str) -> None:
    kind = GGMLQuantizationType[type_name]
    values = np.random.default_rng(0).normal(size=(4, 33)).astype(np.float32)
    data = np.ascontiguousarray(gguf.quants.quantize(values, kind)).view(np.uint8)
    expected = gguf.quants.dequantize(data, kind)
    np.testing.assert_array_equal(dequantize(torch.from_numpy(data).flatten(), type_name).numpy(), expected.ravel())


def test_every_type_has_the_block_size_of_the_gguf_package() -> None:
    for number, (name, weights, num_bytes) in GGML_TYPES.items():
        assert GGMLQuantizationType[name] == number
        assert gguf.GGML_QUANT_SIZES[GGMLQuantizationType(number)] == (weights, num_bytes)
