"""bitsandbytes' layout of LLM.int8() (``quant_method`` "bitsandbytes", ``load_in_8bit``).

    weight         int8     (O, I)
    SCB            float32  (O,)     the largest of each row: w = weight * SCB / 127
    weight_format  uint8    ()       0: rows as they are, the only one that newer versions write

Which inputs are outliers is found at run time, by ``llm_int8_threshold``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wootz.models.quantized_weight import IntWeight, QuantizedWeight
from wootz.models.rounded_inputs import RoundedInputs

_MIDDLE = 128


@dataclass(frozen=True)
class BitsAndBytesLayout:
    threshold: float = 6.0
    marker = ".SCB"
    endings = (".weight", ".SCB", ".weight_format")

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> BitsAndBytesLayout:
        if not config.get("load_in_8bit"):
            raise ValueError("of bitsandbytes' formats, only int8 is supported; fetch the model unquantised")
        return cls(config.get("llm_int8_threshold", 6.0))

    def read(self, module: str, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        if ".weight_format" in tensors and tensors[".weight_format"].item() != 0:
            raise ValueError("rows in a tiled order of bitsandbytes are not supported")
        levels = (tensors[".weight"].to(torch.int16) + _MIDDLE).to(torch.uint8)
        scale = tensors[".SCB"].float().view(-1, 1) / 127
        if len(scale) != len(levels):
            raise ValueError(f"{len(scale)} scales for {len(levels)} rows")
        # A threshold of 0 is bitsandbytes' way to say that there are no outliers.
        return RoundedInputs(IntWeight(levels, scale, 8), torch.int8, keep_above=self.threshold or None)

    def write(self, weight: QuantizedWeight) -> dict[str, Tensor]:
        inner = weight.weight if isinstance(weight, RoundedInputs) else None
        if not isinstance(inner, IntWeight) or inner.bits != 8 or inner.scale.shape[1] != 1 or inner.zero is not None:
            raise ValueError("bitsandbytes' layout holds eight-bit integers by rows")
        return {
            ".weight": (inner.data.to(torch.int16) - _MIDDLE).to(torch.int8),
            ".SCB": inner.scale.float().flatten() * 127,
            ".weight_format": torch.tensor(0, dtype=torch.uint8),
        }

    def config(self, kept: list[str]) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_8bit": True,
            "load_in_4bit": False,
            "llm_int8_threshold": self.threshold,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": kept,
        }
