"""Rotary position embedding (arXiv 2104.09864), in the "rotate half" layout of Hugging Face checkpoints.

Dimension i of a head is turned together with dimension ``i + d/2``, by ``position * frequency_i``. Models that were
stretched to longer texts slow some of those frequencies down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1: what turns rarely in the original context is slowed by ``factor``, what turns often is left alone, and
    in between the two are blended. Names are those of ``rope_parameters`` in ``config.json``."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def scale(self, frequencies: Tensor) -> Tensor:
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(frequencies / self.factor, frequencies, blend.clamp(0, 1))


@dataclass(frozen=True)
class LinearScaling:
    """Every frequency is slowed by ``factor`` (arXiv 2306.15595)."""

    factor: float

    def scale(self, frequencies: Tensor) -> Tensor:
        return frequencies / self.factor


@dataclass(frozen=True)
class FrequencyFactors:
    """Each frequency is slowed by its own factor: what GGUF files carry in place of a rule."""

    factors: tuple[float, ...]

    def scale(self, frequencies: Tensor) -> Tensor:
        return frequencies / torch.tensor(self.factors, device=frequencies.device)


RopeScaling = Llama3Scaling | LinearScaling | FrequencyFactors


class Rotary(nn.Module):
    """Positions to angles. There is no table: angles are made once per forward pass, for all layers."""

    def __init__(self, head_dim: int, theta: float, scaling: RopeScaling | None) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
        frequencies = 1.0 / theta**exponents
        self.register_buffer("frequencies", scaling.scale(frequencies) if scaling else frequencies, persistent=False)

    def forward(self, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``(T, 1, d)`` for `rotate`."""
        angles = torch.outer(positions_T.float(), self.frequencies)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)

    def _apply(self, fn, recurse=True):  # pyright: ignore[reportMissingParameterType]
        # Frequencies move with the model but stay float32: rounded to bfloat16 they are whole turns off within a page.
        frequencies = self.frequencies
        super()._apply(fn, recurse)
        self.frequencies = frequencies.to(self.frequencies.device)
        return self


def rotate(x_THd: Tensor, cos_T1d: Tensor, sin_T1d: Tensor) -> Tensor:
    """Turn every head by its token's angles. The signs of "rotate half" are in ``sin``, so three operations do."""
    return torch.addcmul(x_THd * cos_T1d, x_THd.roll(x_THd.shape[-1] // 2, -1), sin_T1d)
