"""AutoGPTQ's and GPTQModel's layout (``quant_method`` "gptq").

    qweight  int32    (I * b / 32, O)   inputs packed, lowest first
    qzeros   int32    (G, O * b / 32)   outputs packed
    scales   float16  (G, O)
    g_idx    int32    (I,)              each input's group

    w[o, i] = scales[g_idx[i], o] * (q[i, o] - zero[g_idx[i], o])

The first version of the format stores ``zero - 1`` in ``qzeros``; the second (``checkpoint_format`` "gptq_v2") the
zero itself. A zero of 0 has no well-defined form in the first: what is written here is symmetric, where all are the
middle, and readers agree. With activation order (``desc_act``) the groups of the inputs follow no order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wootz.models.quantized_layouts.packing import pack, unpack
from wootz.models.quantized_weight import IntWeight, QuantizedWeight

_BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class GPTQLayout:
    bits: int
    group_size: int
    """-1: one group is the whole row."""
    version: int = 1
    desc_act: bool = False
    damping: float = 0.01
    marker = ".qweight"
    endings = (".qweight", ".qzeros", ".scales", ".g_idx")

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> GPTQLayout:
        bits, format = config["bits"], config.get("checkpoint_format", "gptq")
        if bits not in _BITS:
            raise ValueError(f"GPTQ of {bits} bits is not supported (2, 3, 4 and 8 are)")
        if format not in ("gptq", "gptq_v2"):
            raise ValueError(f'GPTQ in the format "{format}" is not supported (gptq and gptq_v2 are)')
        version = 2 if format == "gptq_v2" else 1
        return cls(bits, config.get("group_size", -1), version, config.get("desc_act", False))

    def read(self, module: str, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        scale = tensors[".scales"].T.contiguous()
        words, (outputs, groups) = tensors[".qweight"], scale.shape
        inputs = words.shape[0] * 32 // self.bits
        levels_OI = unpack(words.T, self.bits, inputs)
        zero = unpack(tensors[".qzeros"], self.bits, outputs).T.contiguous()
        if self.version == 1:
            zero = zero + 1 & (1 << self.bits) - 1
        in_order = torch.arange(inputs) // (inputs // groups)
        group_of_I = tensors.get(".g_idx", in_order).long()
        if levels_OI.shape[0] != outputs or len(group_of_I) != inputs or zero.shape != scale.shape:
            raise ValueError(f"qweight {(*words.shape,)} and scales {(groups, outputs)} do not fit each other")
        if group_of_I.amin() < 0 or group_of_I.amax() >= groups:
            raise ValueError(f"g_idx names a group that is not one of {groups}")
        return IntWeight.of_levels(
            levels_OI,
            scale,
            self.bits,
            None if bool((zero == 1 << self.bits - 1).all()) else zero,
            None if torch.equal(group_of_I, in_order) else group_of_I,
        )

    def write(self, weight: QuantizedWeight) -> dict[str, Tensor]:
        if not isinstance(weight, IntWeight) or weight.bits != self.bits or weight.shape[0] % 32:
            raise ValueError("GPTQ's layout holds integers, with outputs in multiples of 32")
        inputs, groups = weight.shape[1], weight.scale.shape[1]
        zero = weight.zero
        if zero is None:
            zero = torch.full(weight.scale.shape, 1 << self.bits - 1, dtype=torch.uint8)
        if self.version == 1:
            zero = zero - 1 & (1 << self.bits) - 1
        group_of_I = weight.group_of_I
        if group_of_I is None:
            group_of_I = torch.arange(inputs) // (inputs // groups)
        return {
            ".qweight": pack(weight.levels_OI, self.bits).T.contiguous(),
            ".qzeros": pack(zero.T.contiguous(), self.bits),
            ".scales": weight.scale.half().T.contiguous(),
            ".g_idx": group_of_I.to(torch.int32),
        }

    def config(self, kept: list[str]) -> dict[str, Any]:
        config = {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": self.desc_act,
            "sym": True,
            "damp_percent": self.damping,
            "true_sequential": False,
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
            "lm_head": False,
        }
        return config | ({"modules_to_not_convert": kept} if kept else {})
