"""What a position scheme does, in numbers: which rotary pairs a model has really seen, and what that means.

A pair of dimensions that completes a turn within the training length has seen every angle there is. One that does not
meets, in a longer text, angles that it never saw: those pairs break first, and they are what scaling rules slow down.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wootz.models.positions.rotary import RotaryConfig
from wootz.models.positions.scaling import LinearScaling, NTKScaling, RopeScaling, YarnScaling


@dataclass(frozen=True)
class Pair:
    """One pair of dimensions; angles in radians."""

    index: int
    frequency: float
    """Radians per token."""
    wavelength: float
    """Tokens per turn."""
    turns: float
    """Turns completed within the training length."""
    trained_angle: float
    """The farthest it turned in training."""
    target_angle: float
    """The farthest it turns in the target length."""

    @property
    def is_broken(self) -> bool:
        """Never completed a turn in training, and turns farther than it ever did."""
        return self.turns < 1 and self.target_angle > self.trained_angle * (1 + 1e-6)


@dataclass(frozen=True)
class Wavelengths:
    pairs: tuple[Pair, ...]
    trained_length: int
    target_length: int
    attention_factor: float

    @property
    def broken(self) -> tuple[int, ...]:
        return tuple(pair.index for pair in self.pairs if pair.is_broken)


def wavelengths(config: RotaryConfig, trained_length: int, target_length: int) -> Wavelengths:
    """Every pair of a head. What was trained is the unscaled config's; ``config.scaling`` acts on the target."""
    trained = dataclasses.replace(config, scaling=None).frequencies().double().tolist()
    asked = config.frequencies(target_length).double().tolist()
    pairs = tuple(
        Pair(
            index=index,
            frequency=scaled,
            wavelength=2 * math.pi / scaled,
            turns=trained_length * plain / (2 * math.pi),
            trained_angle=trained_length * plain,
            target_angle=target_length * scaled,
        )
        for index, (plain, scaled) in enumerate(zip(trained, asked, strict=True))
    )
    factor = config.scaling.attention_factor if config.scaling else 1.0
    return Wavelengths(pairs, trained_length, target_length, factor)


def compare_scalings(dim: int, theta: float, trained_length: int, target_length: int) -> Mapping[str, Wavelengths]:
    """The same head under no scaling, PI, NTK-aware and YaRN, each by the factor that the target asks for."""
    factor = target_length / trained_length
    rules: dict[str, RopeScaling | None] = {
        "none": None,
        "linear": LinearScaling(factor),
        "ntk": NTKScaling(factor),
        "yarn": YarnScaling(factor, trained_length),
    }
    return {
        name: wavelengths(RotaryConfig(dim, theta, rule), trained_length, target_length) for name, rule in rules.items()
    }


@dataclass(frozen=True)
class Advice:
    scheme: str
    scaling: str | None
    reason: str


def advise(
    *,
    trained_length: int,
    longest: int,
    kind: Literal["decoder", "encoder", "encoder-decoder"] = "decoder",
    tuning: bool = True,
) -> Advice:
    """Which scheme for a model that is trained on texts of one length and asked to read longer ones."""
    factor = longest / trained_length
    if kind == "encoder" and factor <= 1:
        return Advice("learned", None, "the length is bounded, and a table is as good as anything within it")
    if kind == "encoder-decoder" and factor <= 4:
        return Advice("t5", None, "buckets serve both directions, and share far distances")
    if factor <= 1:
        return Advice("rope", None, "what nearly every decoder has, and nothing has to be stretched")
    if not tuning:
        return Advice(
            "alibi", None, f"{factor:.3g} times longer without further training; far tokens are seen, but faintly"
        )
    if factor <= 2:
        return Advice("rope", "linear", "twice the length needs little; a short training heals interpolation")
    if factor <= 32:
        return Advice("rope", "yarn", f"{factor:.3g} times longer keeps short texts intact; train a few hundred steps")
    return Advice(
        "rope", "longrope", f"{factor:.3g} times longer wants factors found by search, and training in stages"
    )


@torch.no_grad()
def relative_scores(config: RotaryConfig, distances: int) -> Tensor:
    """How a query of all ones meets a key of all ones at each distance, ``(distances,)``, 1 at distance 0: how RoPE
    lets scores fall with distance before anything is learned."""
    angles = torch.outer(torch.arange(distances, dtype=torch.float32), config.frequencies(distances))
    return angles.cos().mean(-1)
