"""What is known of each optimiser before anything is run: what it was made to fix, its defaults, the rates that people
use with it, and the state it keeps. `build.py` reads the defaults; the chooser, the checker of learning rates and the
memory planner read the rest.

Ranges are the usual ones for pretraining (for SGD: images), and no law: `wootz lr find` measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wootz.core.errors import ConfigError

Decay = Literal["l2", "decoupled", "independent"]
"""Where weight decay acts. ``l2``: it is added to the gradient, and so divided by Adam's denominator with it.
``decoupled``: each step shrinks the weights by rate * decay (PyTorch's AdamW). ``independent``: each step shrinks them
by schedule multiplier * decay, whatever the peak rate is (the AdamW paper's), so the two are tuned apart."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    year: int
    fixes: str
    """The failure of those before it that it was made for."""
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay: Decay = "decoupled"
    rates: tuple[float, float]
    """Between which peak learning rates usually lie."""
    buffers: int
    """Of float32, each as large as the parameter."""


ALGORITHMS = {
    "sgd": Algorithm(year=1951, fixes="a gradient of all data is too dear", decay="l2", rates=(0.01, 1.0), buffers=0),
    "momentum": Algorithm(
        year=1964, fixes="zig-zag in narrow valleys", momentum=0.9, decay="l2", rates=(0.01, 0.5), buffers=1
    ),
    "nag": Algorithm(
        year=1983, fixes="momentum overshoots: look ahead", momentum=0.9, decay="l2", rates=(0.01, 0.5), buffers=1
    ),
    "adagrad": Algorithm(
        year=2011, fixes="rare features learn too slowly", eps=1e-10, decay="l2", rates=(0.001, 0.1), buffers=1
    ),
    "rmsprop": Algorithm(
        year=2012, fixes="AdaGrad's rate dies away", betas=(0.0, 0.9), decay="l2", rates=(1e-4, 1e-2), buffers=1
    ),
    "adam": Algorithm(
        year=2014, fixes="RMSProp without momentum, biased at first", decay="l2", rates=(1e-4, 6e-4), buffers=2
    ),
    "adamw": Algorithm(
        year=2017,
        fixes="Adam divides L2 decay by the gradient's history",
        betas=(0.9, 0.95),
        weight_decay=0.1,
        rates=(1e-4, 6e-4),
        buffers=2,
    ),
    "adafactor": Algorithm(
        year=2018, fixes="Adam's state is twice the weights", eps=1e-3, rates=(0.01, 0.05), buffers=0
    ),
    "adamw-8bit": Algorithm(
        year=2021,
        fixes="Adam's state is twice the weights",
        betas=(0.9, 0.95),
        weight_decay=0.1,
        rates=(1e-4, 6e-4),
        buffers=0,
    ),
    "lion": Algorithm(
        year=2023,
        fixes="two buffers where one will do",
        betas=(0.9, 0.99),
        weight_decay=1.0,
        rates=(1e-5, 6e-5),
        buffers=1,
    ),
    "sophia": Algorithm(
        year=2023,
        fixes="Adam's denominator is no curvature",
        betas=(0.965, 0.99),
        eps=1e-12,
        weight_decay=0.1,
        rates=(1e-4, 4e-4),
        buffers=2,
    ),
    "d-adaptation": Algorithm(year=2023, fixes="the learning rate must be tuned", rates=(0.5, 2.0), buffers=3),
    "prodigy": Algorithm(year=2023, fixes="D-Adaptation grows slowly", rates=(0.5, 2.0), buffers=4),
    "schedule-free-sgd": Algorithm(
        year=2024, fixes="a schedule must know the end of the run", momentum=0.9, rates=(0.1, 10.0), buffers=1
    ),
    "schedule-free": Algorithm(
        year=2024,
        fixes="a schedule must know the end of the run",
        betas=(0.9, 0.95),
        weight_decay=0.1,
        rates=(1e-4, 6e-4),
        buffers=2,
    ),
    "muon": Algorithm(
        year=2024,
        fixes="Adam treats a matrix as a list of numbers",
        betas=(0.9, 0.95),
        momentum=0.95,
        weight_decay=0.1,
        rates=(1e-4, 2e-3),
        buffers=1,
    ),
}


def algorithm(name: str) -> Algorithm:
    if name not in ALGORITHMS:
        raise ConfigError(f'there is no optimiser "{name}"', hint=f"one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]
