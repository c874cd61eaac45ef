"""Rotary frequencies for texts longer than those a model was trained on.

A pair of dimensions that turns often has seen every angle in training; one that turns slowly meets, beyond the trained
length, angles that it never saw. Each rule here slows frequencies down, and they differ in which ones and how much. For
a factor s and pairs i = 0 … n - 1, from fast to slow:

| rule | pair i is slowed by | |
|---|---|---|
| `LinearScaling` (PI) | s | all alike; blurs neighbours, so it wants some training |
| `NTKScaling` | s^(i / (n - 1)) | the fastest not at all, the slowest by s; works at once, to a point |
| `DynamicNTKScaling` | the same, s from the text's length | nothing changes for short texts |
| `YarnScaling` | 1 … s, by how often a pair turns | and scores are sharpened a little |
| `LongRopeScaling` | a number of its own | found by search; see `longrope_search.search` |
| `Llama3Scaling` | 1 … s, by how often a pair turns | |

Each has ``scale(frequencies, length)``, an ``attention_factor`` with which cosines and sines are multiplied, and
``longest``: None, unless the frequencies depend on ``length``, the number of tokens of the text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class RopeScaling(Protocol):
    """What `Rotary` asks of a rule. Implementations are frozen dataclasses: configs are compared and hashed."""

    @property
    def attention_factor(self) -> float: ...
    @property
    def longest(self) -> int | None:
        """If the frequencies depend on the text's length: the longest text the rule is meant for."""
        ...

    def scale(self, frequencies: Tensor, length: int | None = None) -> Tensor:
        """Frequencies (radians per position, fastest first) for texts of ``length`` tokens; None for the longest."""
        ...


@dataclass(frozen=True)
class _Uniform:
    """For the rules that know neither temperature nor length."""

    @property
    def attention_factor(self) -> float:
        return 1.0

    @property
    def longest(self) -> int | None:
        return None


@dataclass(frozen=True)
class LinearScaling(_Uniform):
    """Position interpolation: every frequency is slowed by ``factor`` (arXiv 2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def scale(self, frequencies: Tensor, length: int | None = None) -> Tensor:
        return frequencies / self.factor


@dataclass(frozen=True)
class NTKScaling(_Uniform):
    """The base becomes ``theta * factor ** (d / (d - 2))``: the slowest pair is interpolated by exactly ``factor``, the
    fastest left alone, and every pair in between by a little more than the one before it."""

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def scale(self, frequencies: Tensor, length: int | None = None) -> Tensor:
        return frequencies / _spread(self.factor, frequencies)


@dataclass(frozen=True)
class DynamicNTKScaling(_Uniform):
    """NTK-aware with the factor that a text needs: up to ``trained_length`` tokens nothing changes, and at ``factor``
    times that it is ``factor * factor - (factor - 1)``, as transformers has it."""

    factor: float
    trained_length: int

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    @property
    def longest(self) -> int | None:
        return int(self.factor * self.trained_length)

    def scale(self, frequencies: Tensor, length: int | None = None) -> Tensor:
        length = max(length or int(self.factor * self.trained_length), self.trained_length)
        needed = self.factor * length / self.trained_length - (self.factor - 1)
        return frequencies / _spread(needed, frequencies)


@dataclass(frozen=True)
class YarnScaling:
    """arXiv 2309.00071: pairs that turn more than ``beta_fast`` times within the trained length are left alone, those
    that turn less than ``beta_slow`` times are interpolated, and in between the two are blended. Cosines and sines are
    multiplied by ``0.1 ln(factor) + 1``, which divides the temperature of the scores by that squared."""

    factor: float
    trained_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """Widen the blended range to whole pairs."""
    given_attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    """DeepSeek's: the temperature is divided between here and the model's own scale of the scores."""

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    @property
    def attention_factor(self) -> float:
        if self.given_attention_factor is not None:
            return self.given_attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1.0)

    @property
    def longest(self) -> int | None:
        return None

    def scale(self, frequencies: Tensor, length: int | None = None) -> Tensor:
        num_pairs = len(frequencies)
        slowing = -math.log(float(frequencies[-1])) / max(num_pairs - 1, 1)  # f_i = exp(-i * slowing)

        def pair_that_turns(times: float) -> float:
            return math.log(self.trained_length / (times * 2 * math.pi)) / slowing

        low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * num_pairs - 1)
        pairs = torch.arange(num_pairs, dtype=torch.float32, device=frequencies.device)
        interpolated = ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)
        return torch.lerp(frequencies, frequencies / self.factor, interpolated)

    def _temperature(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0


@dataclass(frozen=True)
class LongRopeScaling:
    """arXiv 2402.13753: every pair has a factor of its own, one list for texts within the trained length and one for
    longer ones. Cosines and sines are multiplied by ``sqrt(1 + ln(factor) / ln(trained_length))``, in both cases.

    The paper also leaves the first few tokens of a text unscaled (its n-hat). Checkpoints of others have no word for
    that, and do without."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    trained_length: int
    factor: float
    """How many times longer the longest texts are."""
    given_attention_factor: float | None = None
    unscaled_tokens: int = 0
    """So many first tokens are turned as if nothing had been stretched."""

    @property
    def attention_factor(self) -> float:
        if self.given_attention_factor is not None:
            return self.given_attention_factor
        if self.factor <= 1:
            return 1.0
        return math.sqrt(1 + math.log(self.factor) / math.log(self.trained_length))

    @property
    def longest(self) -> int | None:
        return int(self.factor * self.trained_length)

    def scale(self, frequencies: Tensor, length: int | None = None) -> Tensor:
        length = length or int(self.factor * self.trained_length)
        return _divide(frequencies, self.long_factors if length > self.trained_length else self.short_factors)


@dataclass(frozen=True)
class Llama3Scaling(_Uniform):
    """Llama 3.1: what turns rarely in the original context is slowed by ``factor``, what turns often is left alone, and
    in between the two are blended. Names are those of ``rope_parameters`` in ``config.json``."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def scale(self, frequencies: Tensor, length: int | None = None) -> Tensor:
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(frequencies / self.factor, frequencies, blend.clamp(0, 1))


@dataclass(frozen=True)
class FrequencyFactors(_Uniform):
    """Each frequency is slowed by its own factor: what GGUF files carry in place of a rule."""

    factors: tuple[float, ...]

    def scale(self, frequencies: Tensor, length: int | None = None) -> Tensor:
        return _divide(frequencies, self.factors)


def _spread(factor: float, frequencies: Tensor) -> Tensor:
    """From 1 for the fastest pair to ``factor`` for the slowest, geometrically."""
    pairs = torch.arange(len(frequencies), dtype=torch.float64, device=frequencies.device)
    return (factor ** (pairs / max(len(frequencies) - 1, 1))).to(frequencies.dtype)


def _divide(frequencies: Tensor, factors: tuple[float, ...]) -> Tensor:
    if len(factors) != len(frequencies):
        raise ValueError(f"rotary scaling has {len(factors)} factors for {len(frequencies)} pairs of dimensions")
    return frequencies / torch.tensor(factors, dtype=frequencies.dtype, device=frequencies.device)


def _check_factor(factor: float) -> None:
    if not isinstance(factor, int | float) or not factor > 0:
        raise ValueError(f"a rotary scaling factor must be a positive number, not {factor!r}")
