"""FP8 in blocks (``quant_method`` "fp8"), in which DeepSeek-V3 and Qwen3 are published; read only.

    weight            E4M3     (O, I)
    weight_scale_inv  float32  (ceil(O / 128), ceil(I / 128))   despite its name, multiplied with

Inputs get a scale for each 128 channels of a token at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wootz.models.quantized_weight import FLOAT8, Float8Weight, QuantizedWeight
from wootz.models.rounded_inputs import RoundedInputs


@dataclass(frozen=True)
class BlockFP8Layout:
    block: tuple[int, int]
    marker = ".weight_scale_inv"
    endings = (".weight", ".weight_scale_inv")

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> BlockFP8Layout:
        high, wide = config.get("weight_block_size") or (None, None)
        if high is None or wide is None or config.get("activation_scheme", "dynamic") != "dynamic":
            raise ValueError("FP8 without blocks, or with static scales, is read as compressed-tensors only")
        return cls((high, wide))

    def read(self, module: str, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        weight, scale = tensors[".weight"], tensors[".weight_scale_inv"]
        wanted = tuple(-(-size // block) for size, block in zip(weight.shape, self.block, strict=True))
        if weight.dtype != FLOAT8 or tuple(scale.shape) != wanted:
            raise ValueError(f"{weight.dtype} {(*weight.shape,)} with scales {(*scale.shape,)} instead of {wanted}")
        whole = weight.shape[1] % self.block[1] == 0
        return RoundedInputs(Float8Weight(weight, scale, self.block), FLOAT8, group=self.block[1] if whole else None)

    def write(self, weight: QuantizedWeight) -> dict[str, Tensor]:
        raise ValueError("FP8 is written as compressed-tensors")

    def config(self, kept: list[str]) -> dict[str, Any]:
        raise ValueError("FP8 is written as compressed-tensors")
