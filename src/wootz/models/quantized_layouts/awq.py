"""AutoAWQ's "gemm" layout (``quant_method`` "awq"): four bits, a zero point for each group.

    qweight  int32    (I, O / 8)   outputs packed, of each eight in the order 0 2 4 6 1 3 5 7
    qzeros   int32    (G, O / 8)   the same
    scales   float16  (G, O)

    w[o, i] = scales[i // group, o] * (q[i, o] - zero[i // group, o])

The order is what a GPU unpacks fastest: two values at once, sixteen bits apart. The scales that AWQ multiplies the
weights by have gone into the operation before, and appear nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wootz.models.quantized_layouts.packing import pack, unpack
from wootz.models.quantized_weight import IntWeight, QuantizedWeight

_BITS = 4
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class AWQLayout:
    group_size: int
    marker = ".qweight"
    endings = (".qweight", ".qzeros", ".scales")

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> AWQLayout:
        bits = config.get("bits", config.get("w_bit", _BITS))
        version = str(config.get("version", "gemm")).lower()
        if bits != _BITS or version != "gemm":
            raise ValueError(f'AWQ of {bits} bits in the version "{version}" is not supported (4 bits, "gemm" is)')
        return cls(config.get("group_size", config.get("q_group_size", 128)))

    def read(self, module: str, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        scale = tensors[".scales"].T.contiguous()
        outputs, groups = scale.shape
        levels_OI = _in_order(unpack(tensors[".qweight"], _BITS, outputs)).T
        if levels_OI.shape[1] % groups:
            raise ValueError(f"qweight has {levels_OI.shape[1]} rows, which are not {groups} groups")
        zero = None
        if ".qzeros" in tensors:
            zero = _in_order(unpack(tensors[".qzeros"], _BITS, outputs)).T.contiguous()
            if zero.shape != scale.shape:
                raise ValueError(f"zeros {(*zero.T.shape,)} and scales {(groups, outputs)} do not fit each other")
        return IntWeight.of_levels(levels_OI, scale, _BITS, zero)

    def write(self, weight: QuantizedWeight) -> dict[str, Tensor]:
        if not isinstance(weight, IntWeight) or weight.bits != _BITS or weight.group_of_I is not None:
            raise ValueError("AWQ's layout holds four-bit integers in groups")
        if weight.shape[0] % 8:
            raise ValueError("AWQ's layout holds outputs in multiples of 8")
        zero = weight.zero
        if zero is None:
            zero = torch.full(weight.scale.shape, 1 << _BITS - 1, dtype=torch.uint8)
        return {
            ".qweight": pack(_interleaved(weight.levels_OI.T), _BITS),
            ".qzeros": pack(_interleaved(zero.T), _BITS),
            ".scales": weight.scale.half().T.contiguous(),
        }

    def config(self, kept: list[str]) -> dict[str, Any]:
        return {
            "quant_method": "awq",
            "bits": _BITS,
            "group_size": self.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": kept or None,
        }


def _interleaved(levels: Tensor) -> Tensor:
    return levels.unflatten(1, (-1, 8))[..., list(_ORDER)].flatten(1)


def _in_order(levels: Tensor) -> Tensor:
    back = [_ORDER.index(place) for place in range(8)]
    return levels.unflatten(1, (-1, 8))[..., back].flatten(1)
