"""Products with quantised weights on a GPU, where something faster than dequantising the weight first is known.

Each function returns None where it is not: on another device, for many tokens, or for sizes it does not take.

- Few tokens times four bits or E4M3, inputs as they are: our kernels (`wootz.kernels.triton`), which read the weight as
  small as it is. Many tokens are bound by arithmetic, and the weight in floats serves them better.
- E4M3 times E4M3, each token and each output with a scale: the hardware's own product (`torch._scaled_mm`), for any
  number of tokens, from compute capability 8.9 on. Its sums are exact where the emulation (`RoundedInputs.rounded` and
  floats) rounds the rescaled numbers to the model's dtype once more: they differ by that.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wootz.kernels import triton as gpu

if TYPE_CHECKING:
    from wootz.models.quantized_weight import Float8Weight, IntWeight

_FLOAT8_MULTIPLE = 16
"""What both sizes of the weight have to be multiples of for the hardware's product."""


def times_int4(x: Tensor, weight: IntWeight) -> Tensor | None:
    if weight.bits != 4 or weight.group_of_I is not None or not gpu.serves(x.device):
        return None
    from wootz.kernels.triton import int4

    outputs, columns = weight.shape
    x_TI = x.reshape(-1, columns)
    if not 0 < len(x_TI) <= int4.MOST_TOKENS or not int4.multiplies(columns, weight.scale.shape[1]):
        return None
    return int4.linear(x_TI, weight.data, weight.scale, weight.zero).view(*x.shape[:-1], outputs)


def times_float8(x: Tensor, weight: Float8Weight) -> Tensor | None:
    if weight.block is not None or not gpu.serves(x.device):
        return None
    from wootz.kernels.triton import float8

    outputs, columns = weight.shape
    x_TI = x.reshape(-1, columns)
    if not 0 < len(x_TI) <= float8.MOST_TOKENS:
        return None
    return float8.linear(x_TI, weight.data, weight.scale).view(*x.shape[:-1], outputs)


def rounded_times_float8(x: Tensor, weight: Float8Weight, input_scale: Tensor | None) -> Tensor | None:
    """``x`` rounded to E4M3, each token by a scale of its own if there is none for all."""
    outputs, columns = weight.shape
    if weight.block is not None or outputs % _FLOAT8_MULTIPLE or columns % _FLOAT8_MULTIPLE:
        return None
    if x.dtype != torch.bfloat16 or x.numel() == 0 or not _multiplies_float8(x.device):
        return None
    codes_TI, scale_T1 = _encode(x.reshape(-1, columns), input_scale)
    y_TO = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        codes_TI, weight.data.T, scale_a=scale_T1, scale_b=weight.scale.float().T, out_dtype=torch.bfloat16
    )
    return y_TO.view(*x.shape[:-1], outputs)


def _encode(x_TI: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    if scale is None and gpu.serves(x_TI.device):
        from wootz.kernels.triton import float8

        return float8.encode(x_TI)
    largest = torch.finfo(torch.float8_e4m3fn).max
    wide_TI = x_TI.float()
    if scale is None:
        scale_T1 = (wide_TI.abs().amax(1, keepdim=True) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    else:
        scale_T1 = scale.float().reshape(1, 1).repeat(len(x_TI), 1)
    return (wide_TI / scale_T1).clamp(-largest, largest).to(torch.float8_e4m3fn), scale_T1


@lru_cache
def _multiplies_float8(device: torch.device) -> bool:
    """Ada and Hopper have such products, and what came after them."""
    return (
        device.type == "cuda" and torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 9)
    )
