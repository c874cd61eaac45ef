"""The product inside a gated MLP, ``act(gate) * up`` (SwiGLU and its kin, arXiv 2002.05202), in one pass.

Bound by memory: ``3 * T * F`` numbers. PyTorch's operations one by one move 5 and launch two kernels.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (A launch takes plain numbers for `constexpr` parameters, and options of the compiler beside them.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ACTIVATIONS = {"silu": 0, "swish": 0, "gelu_pytorch_tanh": 1, "gelu_new": 1}
"""What the kernel knows, by the names of Hugging Face configs."""

_TWICE_SQRT_2_OVER_PI = tl.constexpr(1.5957691216057308)


def gated(gate_up_TF2: Tensor, activation: str) -> Tensor:
    """``(T, F)`` of contiguous ``(T, 2 F)``, gates first."""
    tokens, width = gate_up_TF2.shape[0], gate_up_TF2.shape[1] // 2
    out_TF = torch.empty((tokens, width), dtype=gate_up_TF2.dtype, device=gate_up_TF2.device)
    block = min(1024, triton.next_power_of_2(width))
    _gated[tokens, triton.cdiv(width, block)](
        gate_up_TF2, out_TF, width, BLOCK=block, TANH_GELU=ACTIVATIONS[activation] == 1
    )
    return out_TF


@triton.jit
def _gated(gate_up, out, width, BLOCK: tl.constexpr, TANH_GELU: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = places < width
    gate = tl.load(gate_up + token * 2 * width + places, mask=mask, other=0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * width + width + places, mask=mask, other=0)
    if TANH_GELU:  # gelu(x) = x * (1 + tanh(u)) / 2 = x * sigmoid(2 u)
        gate = gate * tl.sigmoid((gate + 0.044715 * gate * gate * gate) * _TWICE_SQRT_2_OVER_PI)
    else:
        gate = gate * tl.sigmoid(gate)
    gate = gate.to(up.dtype).to(tl.float32)
    tl.store(out + token * width + places, (gate * up.to(tl.float32)).to(up.dtype), mask=mask)
