"""FP8 (E4M3, arXiv 2209.05433): tokens put into codes, and a few tokens times a weight in codes.

- `linear` is for weights whose inputs are *not* rounded. Bound by memory: ``O * I`` bytes.
- `encode` is for those whose inputs are, before the hardware's own product (`torch._scaled_mm`): largest number, scale
  and codes of a token in one pass, ``T * I`` numbers read twice (the second time from the cache) and as many bytes
  written.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (A launch takes plain numbers for `constexpr` parameters, and options of the compiler beside them.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_TOKENS = 64
"""From here on it should pay to dequantise first. An estimate."""


def linear(x_TI: Tensor, data_OI: Tensor, scale_O: Tensor) -> Tensor:
    """``(T, O)`` in x's dtype, for contiguous ``x``, ``data`` (float8_e4m3fn) and ``scale``."""
    tokens, columns = x_TI.shape
    outputs = len(data_OI)
    out_TO = torch.empty((tokens, outputs), dtype=x_TI.dtype, device=x_TI.device)
    _linear[triton.cdiv(outputs, 32), triton.cdiv(tokens, 16)](
        x_TI, data_OI.view(torch.uint8), scale_O, out_TO, tokens, outputs, columns, T=16, OUT=32, IN=64
    )
    return out_TO


def encode(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """Codes ``(T, I)`` and scales ``(T, 1)``, by which a token's largest number becomes the format's largest."""
    tokens, columns = x_TI.shape
    codes_TI = torch.empty((tokens, columns), dtype=torch.uint8, device=x_TI.device)
    scale_T1 = torch.empty((tokens, 1), dtype=torch.float32, device=x_TI.device)
    _encode[tokens,](x_TI.contiguous(), codes_TI, scale_T1, columns, IN=1024)
    return codes_TI.view(torch.float8_e4m3fn), scale_T1


@triton.jit
def e4m3_numbers(codes):
    """Numbers of E4M3 codes (uint8), in float32. As a float16's sign, exponent and fraction they are 2^8 too small,
    below the smallest normal number too: no conversion in hardware is needed, which GPUs before Ada do not have."""
    wide = codes.to(tl.uint16)
    halves = ((wide & 128) << 8) | ((wide & 127) << 7)
    return halves.to(tl.float16, bitcast=True).to(tl.float32) * 256


@triton.jit
def _encode(x, codes, scales, columns, IN: tl.constexpr):
    token = tl.program_id(0)
    x += token.to(tl.int64) * columns
    codes += token.to(tl.int64) * columns
    largest_I = tl.zeros((IN,), tl.float32)
    for start in range(0, columns, IN):
        columns_I = start + tl.arange(0, IN)
        x_I = tl.load(x + columns_I, mask=columns_I < columns, other=0).to(tl.float32)
        largest_I = tl.maximum(largest_I, tl.abs(x_I))
    scale = tl.maximum(tl.max(largest_I, 0) / 448.0, 1.1754943508222875e-38)
    tl.store(scales + token, scale)
    for start in range(0, columns, IN):
        columns_I = start + tl.arange(0, IN)
        x_I = tl.load(x + columns_I, mask=columns_I < columns, other=0).to(tl.float32) / scale
        x_I = tl.minimum(tl.maximum(x_I, -448.0), 448.0)
        tl.store(codes + columns_I, x_I.to(tl.float8e4nv).to(tl.uint8, bitcast=True), mask=columns_I < columns)


@triton.jit
def _linear(x, data, scales, out, tokens, outputs, columns, T: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr):
    outputs_O = tl.program_id(0) * OUT + tl.arange(0, OUT)
    tokens_T = tl.program_id(1) * T + tl.arange(0, T)
    mask_O, mask_T = outputs_O < outputs, tokens_T < tokens
    acc_TO = tl.zeros((T, OUT), tl.float32)
    for start in range(0, columns, IN):
        columns_I = start + tl.arange(0, IN)
        inside_I = columns_I < columns
        x_TI = tl.load(
            x + tokens_T[:, None] * columns + columns_I[None, :], mask=mask_T[:, None] & inside_I[None, :], other=0
        )
        codes_IO = tl.load(
            data + outputs_O.to(tl.int64)[None, :] * columns + columns_I[:, None],
            mask=inside_I[:, None] & mask_O[None, :],
            other=0,
        )
        w_IO = e4m3_numbers(codes_IO).to(x_TI.dtype)
        acc_TO += tl.dot(x_TI, w_IO, input_precision="ieee")
    scale_O = tl.load(scales + outputs_O, mask=mask_O, other=0).to(tl.float32)
    places_TO = tokens_T[:, None].to(tl.int64) * outputs + outputs_O[None, :]
    out_TO = acc_TO * scale_O[None, :]
    tl.store(out + places_TO, out_TO.to(out.dtype.element_ty), mask=mask_T[:, None] & mask_O[None, :])
