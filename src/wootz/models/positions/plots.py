"""Pictures of position schemes. Needs the extra "bench" (matplotlib)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wootz.core.errors import MissingExtraError
from wootz.models.positions.alibi import ALiBiConfig
from wootz.models.positions.inspect import relative_scores
from wootz.models.positions.rotary import RotaryConfig
from wootz.models.positions.sinusoidal import sinusoids


def plot_sinusoids(file: Path, num_positions: int = 128, dim: int = 64) -> None:
    """Positions down, dimensions across."""
    _heatmap(file, sinusoids(torch.arange(num_positions), dim), "dimension", "position")


def plot_rope(file: Path, config: RotaryConfig, distances: int = 512) -> None:
    """How the score of equal vectors falls with distance."""
    figure, axes = _figure()
    axes.plot(relative_scores(config, distances))
    axes.set_xlabel("distance in tokens")
    axes.set_ylabel("score, relative to distance 0")
    _save(figure, file)


def plot_alibi(file: Path, num_heads: int = 8, length: int = 64) -> None:
    """A line per head: what is taken off a score at each distance."""
    relative_1L = -torch.arange(length)[None]
    bias_HL = ALiBiConfig().build(num_heads, 1)(None, None, relative_1L)[:, 0]
    figure, axes = _figure()
    for head, line in enumerate(bias_HL):
        axes.plot(line, label=f"head {head}")
    axes.set_xlabel("distance in tokens")
    axes.set_ylabel("bias")
    axes.legend()
    _save(figure, file)


def plot_similarity(file: Path, table_PD: Tensor) -> None:
    """Cosine similarity of every two rows of a learned table."""
    normed = torch.nn.functional.normalize(table_PD.detach().float(), dim=-1)
    _heatmap(file, normed @ normed.T, "position", "position")


def _heatmap(file: Path, values: Tensor, across: str, down: str) -> None:
    figure, axes = _figure()
    figure.colorbar(axes.imshow(values, aspect="auto", interpolation="nearest"))
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    _save(figure, file)


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError("models.positions.plots", "bench", "matplotlib") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, dpi=120)
