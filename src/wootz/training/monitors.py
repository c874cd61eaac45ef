"""Vital signs of a run, as plain functions over what a step leaves behind: gradient norms, how far weights move, how
noisy gradients are. Callbacks of the trainer call these and write the figures down; `triage.py` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

HEALTHY_RATIO = (1e-5, 1e-2)
"""Of an update to its weights, per step; around 1e-3 is usual. Below: hardly learns. Above: unstable."""


@torch.no_grad()
def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """Over all parameters together, before clipping."""
    norms = [parameter.grad.norm() for parameter in parameters if parameter.grad is not None]
    return torch.stack(norms).norm().item() if norms else 0.0


def snapshot(named_parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Copies of the matrices, to compare with after the step. Vectors (norms begin at 1, biases at 0) say little."""
    return {name: parameter.detach().clone() for name, parameter in named_parameters if parameter.ndim > 1}


@torch.no_grad()
def update_ratios(before: Mapping[str, Tensor], named_parameters: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """||new - old|| / ||old|| of each matrix that `snapshot` kept."""
    return {
        name: ((parameter - before[name]).norm() / before[name].norm().clamp(min=1e-30)).item()
        for name, parameter in named_parameters
        if name in before
    }


def median_ratio(ratios: Mapping[str, float]) -> float:
    ordered = sorted(ratios.values())
    return ordered[len(ordered) // 2]


@dataclass
class SpikeDetector:
    """Tells a gradient norm (or loss) that stands out of its recent past: more than ``threshold`` deviations above the
    running mean of its logarithm. Spikes do not enter the mean. The first ``patience`` values only teach."""

    threshold: float = 6.0
    memory: float = 0.98
    patience: int = 20
    smallest_deviation: float = 0.1
    """Of the logarithm: a norm that hardly varies is not a spike for varying by a few percent."""
    mean: float = 0.0
    square: float = 0.0
    seen: int = 0

    def __call__(self, value: float) -> bool:
        if not math.isfinite(value):
            return True
        log = math.log(max(value, 1e-30))
        correction = 1 - self.memory**self.seen if self.seen else 1.0
        mean = self.mean / correction
        deviation = max(math.sqrt(max(self.square / correction - mean**2, 0.0)), self.smallest_deviation)
        if self.seen >= self.patience and log > mean + self.threshold * deviation:
            return True
        self.mean = self.memory * self.mean + (1 - self.memory) * log
        self.square = self.memory * self.square + (1 - self.memory) * log**2
        self.seen += 1
        return False


@dataclass(frozen=True)
class GradientNoise:
    """Of single examples' gradients: E|g_B|^2 = |G|^2 + tr(Sigma) / B (arXiv 1812.06162)."""

    signal: float
    """|G|^2, of the true gradient."""
    noise: float
    """tr(Sigma), of one example."""

    @property
    def scale(self) -> float:
        """tr(Sigma) / |G|^2: the batch at which noise and signal are equal. Much smaller batches waste steps, much
        larger ones examples."""
        return self.noise / self.signal if self.signal > 0 else math.inf


def gradient_noise(small: float, small_batch: int, large: float, large_batch: int) -> GradientNoise:
    """From mean squared gradient norms at two batch sizes (micro-batches and their sum give both for nothing)."""
    signal = (large_batch * large - small_batch * small) / (large_batch - small_batch)
    return GradientNoise(signal, (small - large) / (1 / small_batch - 1 / large_batch))
