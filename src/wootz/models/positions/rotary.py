"""Rotary position embedding (arXiv 2104.09864): pairs of dimensions turn by ``position * frequency``.

Which dimensions pair is a matter of layout: i with ``i + d/2`` ("rotate half", most checkpoints), or 2i with 2i + 1
("interleaved"). Models that were stretched to longer texts slow some frequencies down.
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


@dataclass(frozen=True)
class RotaryConfig:
    """Which dimensions turn how fast. With ``dim`` smaller than a head, only its first ``dim`` dimensions turn."""

    dim: int
    theta: float = 10_000.0
    scaling: RopeScaling | None = None
    interleaved: bool = False
    """Turn dimension 2i together with 2i + 1, as the paper and GPT-J do, and not with ``i + dim/2``."""

    def __post_init__(self) -> None:
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"rotary positions turn pairs of dimensions, and {self.dim} is not even")


@dataclass(frozen=True)
class Rotation:
    """The angles of one forward pass: ``(T, 1, dim)`` each, with the signs of "rotate half" in ``sin``."""

    cos_T1d: Tensor
    sin_T1d: Tensor
    interleaved: bool = False

    def __call__(self, x_THd: Tensor) -> Tensor:
        """Every head turned by its token's angles."""
        dim = self.cos_T1d.shape[-1]
        if dim < x_THd.shape[-1]:
            return torch.cat((self(x_THd[..., :dim]), x_THd[..., dim:]), -1)
        swapped = x_THd.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if self.interleaved else x_THd.roll(dim // 2, -1)
        return torch.addcmul(x_THd * self.cos_T1d, swapped, self.sin_T1d)


class Rotary(nn.Module):
    """Positions to angles. There is no table: angles are made once per forward pass, for all layers."""

    def __init__(self, config: RotaryConfig) -> None:
        super().__init__()
        self.config = config
        exponents = torch.arange(0, config.dim, 2, dtype=torch.float32, device="cpu") / config.dim
        frequencies = 1.0 / config.theta**exponents
        if config.scaling:
            frequencies = config.scaling.scale(frequencies)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, positions_T: Tensor, dtype: torch.dtype) -> Rotation:
        angles = torch.outer(positions_T.float(), self.frequencies)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        if self.config.interleaved:
            cos, sin = torch.stack((cos, cos), -1).flatten(-2), torch.stack((-sin, sin), -1).flatten(-2)
        else:
            cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return Rotation(cos.unsqueeze(1), sin.unsqueeze(1), self.config.interleaved)

    def _apply(self, fn, recurse=True):  # pyright: ignore[reportMissingParameterType]
        # Frequencies move with the model but stay float32: rounded to bfloat16 they are whole turns off within a page.
        frequencies = self.frequencies
        super()._apply(fn, recurse)
        self.frequencies = frequencies.to(self.frequencies.device)
        return self
