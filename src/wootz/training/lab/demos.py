"""Behaviours in figures, deterministic and quick: `wootz optim demo NAME`.

Each demo is a function without arguments that returns a `Demo`: curves to draw, and a sentence with the figures in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from wootz.core.errors import MissingExtraError, NotFoundError
from wootz.training.lab.quadratic import overshoot
from wootz.training.optimizers import OptimizerConfig, build_optimizer


@dataclass(frozen=True)
class Demo:
    title: str
    x: str
    y: str
    curves: dict[str, list[tuple[float, float]]]
    says: str
    log_y: bool = False


def nonstationary() -> Demo:
    """Gradients get ten times smaller at step 60: AdaGrad's effective rate goes on falling, RMSProp's comes back."""

    def effective(name: str) -> list[tuple[float, float]]:
        weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = build_optimizer([weight], OptimizerConfig(name=name, learning_rate=0.1))
        rates = []
        for step in range(120):
            gradient = 10.0 if step < 60 else 1.0
            weight.grad, before = torch.full_like(weight, gradient), weight.item()
            optimizer.step()
            rates.append((float(step), (before - weight.item()) / gradient))
        return rates

    curves = {name: effective(name) for name in ("adagrad", "rmsprop")}
    change = {name: curve[-1][1] / curve[59][1] for name, curve in curves.items()}
    return Demo(
        "The gradient's scale changes at step 60",
        "step",
        "step / gradient",
        curves,
        f"from step 60 to 120 the effective rate changed x{change['adagrad']:.3f} under AdaGrad, "
        f"x{change['rmsprop']:.1f} under RMSProp",
        log_y=True,
    )


def sparse() -> Demo:
    """One feature in every step, one in every twentieth: per appearance AdaGrad moves the rare one further."""

    def travelled(name: str) -> list[tuple[float, float]]:
        weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        optimizer = build_optimizer([weight], OptimizerConfig(name=name, learning_rate=0.1))
        path = []
        for step in range(1, 401):
            weight.grad = torch.tensor([1.0, 1.0 if step % 20 == 0 else 0.0], dtype=torch.float64)
            optimizer.step()
            common, rare = (-weight.detach()).tolist()
            path.append((float(step), (rare / max(1, step // 20)) / (common / step)))
        return path[20:]

    curves = {name: travelled(name) for name in ("sgd", "adagrad")}
    return Demo(
        "A rare feature's step, in steps of a common one",
        "step",
        "per appearance, rare / common",
        curves,
        f"per appearance the rare feature moved {curves['sgd'][-1][1]:.1f} times as far as the common one under SGD, "
        f"{curves['adagrad'][-1][1]:.1f} times under AdaGrad",
    )


def l2_vs_wd() -> Demo:
    """How much a weight shrinks by its decay, by the size of its gradients: L2 inside Adam spares large ones."""
    scales = [10 ** (power / 4) for power in range(-8, 9)]

    def shrunk(decay: str) -> list[tuple[float, float]]:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(400, len(scales), generator=generator, dtype=torch.float64)
        ends = []
        for strength in (0.0, 0.1):
            weight = nn.Parameter(torch.ones(1, len(scales), dtype=torch.float64))
            config = OptimizerConfig(name="adamw", learning_rate=0.002, weight_decay=strength, decay=decay)  # type: ignore[arg-type]
            optimizer = build_optimizer([weight], config)
            for row in noise:
                weight.grad = (row * torch.tensor(scales))[None]
                optimizer.step()
            ends.append(weight.detach()[0])
        return list(zip(scales, (ends[0] - ends[1]).tolist(), strict=True))

    curves = {"L2 in Adam": shrunk("l2"), "AdamW": shrunk("decoupled")}
    (_, small), (_, large) = curves["L2 in Adam"][4], curves["L2 in Adam"][-1]
    flat = [shrink for _, shrink in curves["AdamW"]]
    return Demo(
        "What weight decay took off a weight of 1 in 400 steps",
        "size of the gradients",
        "shrunk by",
        curves,
        f"L2: {small:.3f} for gradients of 0.1, {large:.4f} for gradients of 100; "
        f"decoupled: {min(flat):.3f} to {max(flat):.3f} whatever they are",
        log_y=True,
    )


def nesterov() -> Demo:
    """How far heavy-ball momentum and Nesterov's swing beyond the optimum, by momentum, at the same rate."""
    momenta = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    curves = {name: [(beta, overshoot(name, momentum=beta)) for beta in momenta] for name in ("momentum", "nag")}
    return Demo(
        "Overshoot on w^2 / 2 from 1, rate 0.1",
        "momentum",
        "furthest beyond the optimum",
        curves,
        f"at momentum 0.9 heavy-ball goes {curves['momentum'][4][1]:.2f} too far, Nesterov {curves['nag'][4][1]:.2f}",
    )


def half_precision() -> Demo:
    """An average of squares that should fall from 1 to 0.25, in each type."""

    def average(dtype: torch.dtype) -> list[tuple[float, float]]:
        second, path = torch.ones((), dtype=dtype), []
        for step in range(5000):
            second = second * 0.999 + torch.tensor(0.25, dtype=dtype) * 0.001
            if step % 50 == 0:
                path.append((float(step), second.item()))
        return path

    curves = {name: average(getattr(torch, name)) for name in ("float32", "float16", "bfloat16")}
    ends = ", ".join(f"{curve[-1][1]:.3f} in {name}" for name, curve in curves.items())
    return Demo("A second moment after its gradients shrank", "step", "its value", curves, f"after 5,000 steps: {ends}")


DEMOS: dict[str, Callable[[], Demo]] = {
    "nonstationary": nonstationary,
    "sparse": sparse,
    "l2-vs-wd": l2_vs_wd,
    "nesterov": nesterov,
    "half-precision": half_precision,
}


def demo(name: str) -> Demo:
    if name not in DEMOS:
        raise NotFoundError(f'there is no demo "{name}"', hint=f"one of {', '.join(DEMOS)}")
    return DEMOS[name]()


def draw(
    curves: dict[str, list[tuple[float, float]]],
    file: Path,
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    marks: dict[str, float] | None = None,
) -> None:
    """A line per curve; ``marks`` are vertical lines at an x. Needs the ``bench`` extra."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise MissingExtraError("training.lab", "bench", "matplotlib") from None
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), label=name, linewidth=1.5)
    for name, place in (marks or {}).items():
        axes.axvline(place, linestyle="--", color="grey", linewidth=1)
        axes.annotate(
            name, (place, 1), xycoords=("data", "axes fraction"), rotation=90, va="top", ha="right", fontsize=8
        )
    axes.set(xlabel=x, ylabel=y, title=title)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)
