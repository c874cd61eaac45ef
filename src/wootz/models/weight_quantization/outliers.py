"""LLM.int8() (arXiv 2208.07339): eight-bit weights and activations, but for the few columns of large activations.

Above some billions of parameters a few input features are tens of times larger than the rest. One step size that spans
them leaves nothing for the others, so those columns are multiplied as they are and added to the eight-bit product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wootz.models.weight_quantization.rounding import Quantized, round_to_nearest


@dataclass(frozen=True)
class Int8WithOutliers:
    """``outliers_C`` are the columns kept in ``kept_OC``, float16; in ``quantized`` they are zero."""

    quantized: Quantized
    outliers_C: Tensor
    kept_OC: Tensor

    def multiply(self, x_TI: Tensor) -> Tensor:
        """``x W^T`` with x rounded to eight bits, a scale for each token, outside of the outlier columns."""
        usual_TI = x_TI.float().clone()
        usual_TI[:, self.outliers_C] = 0
        x = round_to_nearest(usual_TI, 8)
        product_TO = (x.q_OI.double() @ self.quantized.q_OI.double().T).float()  # exact, as int32 would be
        eight_bit_TO = product_TO * x.scale.float() * self.quantized.scale.float().T
        return eight_bit_TO + x_TI[:, self.outliers_C].float() @ self.kept_OC.float().T

    @property
    def weight_OI(self) -> Tensor:
        """The float32 weight that this stands for."""
        weight_OI = self.quantized.weight_OI
        weight_OI[:, self.outliers_C] = self.kept_OC.float()
        return weight_OI

    @property
    def num_bytes(self) -> int:
        kept = self.kept_OC.numel() * 2 + self.outliers_C.numel() * 4
        return self.quantized.num_bytes - self.kept_OC.numel() + kept


def split_outliers(weight_OI: Tensor, inputs_NI: Tensor, *, threshold: float = 6.0) -> Int8WithOutliers:
    """Columns whose input is anywhere above ``threshold`` stay as they are."""
    outliers_C = (inputs_NI.flatten(0, -2).abs().amax(0) > threshold).nonzero().flatten()
    usual_OI = weight_OI.detach().float().clone()
    usual_OI[:, outliers_C] = 0
    return Int8WithOutliers(round_to_nearest(usual_OI, 8), outliers_C, weight_OI.detach()[:, outliers_C].half())


def eight_bit_product(weight_OI: Tensor, x_TI: Tensor) -> Tensor:
    """The same with no columns kept apart: what outliers spoil."""
    return split_outliers(weight_OI, torch.zeros(1, weight_OI.shape[1])).multiply(x_TI)
